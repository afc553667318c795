"""`make demo`: the demo of relay_project, run for real."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path

import httpx
import pytest
from django.core.management import CommandError, call_command

from relay_project.demo.browser import Browser
from relay_project.demo.play import Play
from relay_project.demo.programs import Programs
from relay_project.demo.stage import DemoError, Stage
from relay_project.management.commands import amesh_demo
from tests.keystore.tpms import Swtpm, running_swtpm
from tests.support.forked_python import ForkedPython
from tests.support.services import HOST, ROOT

pytestmark = pytest.mark.process

SECONDS = 240
#: How many there are if it is said where the keys are to live.
CHECKS = 68


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with ForkedPython(tmp_path) as programs:
        started = Demo(tmp_path, programs)
        yield started
        started.close()


class Demo:
    """`manage.py amesh_demo` as a process, with environment variables that it must ignore. The fork server runs its programs."""

    def __init__(self, folder: Path, programs: ForkedPython) -> None:
        self.programs = programs
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "output.txt"
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "DJANGO_SETTINGS_MODULE": "relay_project.settings",
            "DJANGO_DATA_DIR": str(folder / "data"),
            # Somebody else's: the demo must not touch them.
            "AUTH_MESH_DIR": str(folder / "mine"),
            "AUTH_MESH_PASSPHRASE": "open sesame",
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "DJANGO_DEBUG": "1",
            "AMESH_SEAL_KEY_FILE": str(folder / "nowhere"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, before: str = "pass") -> None:
        python = str(self.programs.folder / "python")
        code = f"import sys; sys.executable = {python!r}; {before}; from manage import main; sys.argv = ['manage.py', 'amesh_demo', *sys.argv[1:]]; main()"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code, *options],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def printed(self) -> str:
        return self.log.read_text("utf-8")

    def until(self, text: str) -> str:
        deadline = time.monotonic() + SECONDS
        while text not in self.printed():
            assert self.process is not None
            assert self.process.poll() is None and time.monotonic() < deadline, self.printed()
            time.sleep(0.1)
        return self.printed()

    def end(self, sent: signal.Signals | None = None) -> int:
        assert self.process is not None
        if sent is not None:
            self.process.send_signal(sent)
        return self.process.wait(SECONDS)

    def nothing_is_left(self) -> bool:
        port = re.search(r"http://127\.0\.0\.1:(\d+)", self.printed())
        if port:
            with socket.socket() as probe:
                assert probe.connect_ex((HOST, int(port.group(1)))) != 0
        # The locks of a TPM stay: every process that uses it must find the same.
        return not [path for path in self.temporary.iterdir() if not path.name.startswith(".amesh-tpm-")]

    def close(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            self.process.wait(SECONDS)


@pytest.fixture
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.mark.long
def test_the_main_job_with_all_keys_in_a_tpm_and_a_server_that_is_kept(demo: Demo, swtpm: Swtpm) -> None:
    """A server and commands use one TPM at the same time."""
    demo.environment |= swtpm.environ
    demo.start("--keep", "--backend", "tpm2")
    printed = demo.until("amesh fetch")
    assert printed.count("✓") == CHECKS and "✗" not in printed, printed
    for line in (
        *(
            rf"✓ the key of {name} is in the chosen key store +tpm2\n"
            for name in ("server", "laptop", "stranger", "edge")
        ),
        r"✓ \d{6} is typed on the server +This may be an attack",
        r"✓ the server trusts no device",
        r"✓ \d{6} is typed on the server +Verified",
        r"✓ the server lists the other one +am_\S+ as controller",
        r"✓ the laptop lists the other one +am_\S+ as target",
        r"✓ the laptop's first request enrols it, and is accepted +200",
        r"✓ the token is used up",
        r"✓ GET /api/hello +200 laptop",
        r"✓ POST /api/hello .+ +200 laptop",
        r"✓ the same request again +401 unauthorized +log: replay_detected",
        r"✓ one byte of the body changed +401 unauthorized +log: invalid_signature",
        r"✓ a good signature, by the stranger +401 unauthorized +log: unknown_device",
        r"✓ all three are in the list, and wait +pending, pending, pending",
        r"✓ POST /api/readings, which needs readings:write +403",
        r"✓ 20 requests during the rotation +20 × 200",
        r"✓ a request of sensor-2, one second later +401",
        r"✓ the laptop's next request +500 allow_list_integrity_failure",
        r"\$ manage\.py amesh_integrity --reseal --yes",
        r"✓ the laptop's next request +200 laptop of the boss",
        r"✓ both accept the laptop +200, 200",
        r"✓ north rejects the laptop +\d{1,4} ms after",
        r"✓ south rejects the laptop +\d{1,4} ms after",
        r"✓ the laptop's next request +401 unauthorized +log: device_revoked",
        r"✓ amesh_audit names the event that was edited +changed 2",
        r"✓ without the edit, it verifies the log again",
    ):
        assert re.search(line, printed), line

    admin, password = re.findall(r"^  (?:admin|password) +(\S+)$", printed, re.MULTILINE)
    folder = next(demo.temporary.glob("amesh-demo-*"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert password not in "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())
    browser = Browser()
    login = browser.open(admin)
    inside = browser.submit(login, login.form("username", "password"), username="demo", password=password)
    assert "waits for approval" in inside.text
    assert "1 of 2 servers are up to date" in inside.text and "south" in inside.text
    browser.close()
    url = admin.removesuffix("/admin/amesh/")
    assert "amesh server" in httpx.get(url).text
    assert httpx.get(f"{url}/static/admin/css/base.css").status_code == 200

    assert demo.end(signal.SIGINT) == 0
    assert f"All {CHECKS} checks passed." in demo.printed()
    assert swtpm.loaded() == []
    assert demo.nothing_is_left()


@pytest.mark.unversioned  # the other test runs the demo to its end
def test_without_a_tpm_the_demo_says_why(demo: Demo) -> None:
    demo.environment["AMESH_TPM_TCTI"] = "device:/dev/no-tpm"
    demo.start("--backend", "tpm2")
    assert demo.end() == 1
    assert "/dev/no-tpm is missing" in demo.printed() and "Traceback" not in demo.printed()
    assert demo.nothing_is_left()


def test_whose_tpm_the_demo_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMESH_TPM_TCTI", "swtpm:port=2321")
    stage = Stage([].append)
    assert Programs(tmp_path, stage, "tpm2").environment("laptop")["AMESH_TPM_TCTI"] == "swtpm:port=2321"
    assert Programs(tmp_path, stage, "encrypted-file").environment("laptop")["AMESH_TPM_TCTI"] == "none"
    assert "AMESH_TPM_TCTI" not in Programs(tmp_path, stage).environment("laptop")


@pytest.mark.long
@pytest.mark.unversioned  # the other test runs the demo to its end
@pytest.mark.parametrize(
    ("until", "sent", "code"),
    [("manage.py runserver", signal.SIGINT, 130), ("south rejects the laptop", signal.SIGTERM, 143)],
)
def test_ended_in_the_middle_it_leaves_nothing(demo: Demo, until: str, sent: signal.Signals, code: int) -> None:
    """Without gunicorn, so that the demo also runs with runserver; and with keys in files, for almost all of it."""
    demo.start(before="sys.modules['gunicorn'] = None")
    demo.until(until)
    assert demo.end(sent) == code
    printed = demo.printed()
    assert "manage.py runserver" in printed
    assert "✗" not in printed and "Traceback" not in printed
    assert demo.nothing_is_left()


def test_a_check_that_fails_is_marked_and_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(self: Play, afterwards: object) -> None:
        self._stage.check("the same request again", False, "200 laptop", expected="401 unauthorized")

    monkeypatch.setattr(Play, "perform", perform)
    out = StringIO()
    with pytest.raises(CommandError, match="1 of 1 checks failed"):
        call_command(amesh_demo.Command(), stdout=out)
    assert re.search(r"✗ the same request again +200 laptop +expected: 401 unauthorized", out.getvalue())


@pytest.mark.parametrize("error", [DemoError("It broke."), httpx.ConnectError("refused")])
def test_what_stops_the_demo_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def perform(self: Play, afterwards: object) -> None:
        raise error

    monkeypatch.setattr(Play, "perform", perform)
    with pytest.raises(CommandError, match=r"It broke\.|The server did not answer: refused"):
        call_command(amesh_demo.Command(), stdout=StringIO())


def test_a_terminal_without_our_marks_gets_words() -> None:
    class Latin(StringIO):
        encoding = "latin-1"

    assert amesh_demo.Command(stdout=Latin(), no_color=True)._marks() == ("ok", "NO")
    said: list[str] = []
    Stage(said.append, marks=("ok", "NO")).check("it", True, "200")
    assert said[0].split() == ["ok", "it", "200"]
