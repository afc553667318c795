"""Both front ends on a real pseudo-terminal: questions, Ctrl-C, colors, widths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from tests.support import cheap_keys, databases
from tests.support.front_ends import FRONT_ENDS, HOSTILE, answering, id_of, line_of
from tests.support.services import ROOT
from tests.support.terminal import terminal

pytestmark = pytest.mark.process


class FrontEnd:
    """One of the two front ends, with a device directory and everything else that it needs."""

    def __init__(self, django: bool, env: dict[str, str]) -> None:
        self.django = django
        self.env = env

    def argv(self, name: str, *words: str) -> list[str]:
        return cheap_keys.argv(self.django, name, *words)

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv(name, *words), env=self.env, capture_output=True, text=True, input="", cwd=ROOT)

    def trust(self, device: EphemeralDevice) -> str:
        done = self.run("trust", line_of(device), "--role", "controller", "--yes")
        assert done.returncode == 0, done.stderr
        return id_of(device)

    def trusted(self) -> list[str]:
        return [entry["deviceId"] for entry in json.loads(self.run("list", "--json").stdout)["devices"]]


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FrontEnd]:
    EphemeralDevice("server").write(tmp_path / "amesh")
    env = {**os.environ, "AUTH_MESH_DIR": str(tmp_path / "amesh"), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    if request.param == "manage.py":
        env |= databases.environment(request.getfixturevalue("sqlite_database"))
    yield FrontEnd(request.param == "manage.py", env)


def test_a_person_is_asked_and_answers(front_end: FrontEnd) -> None:
    device = EphemeralDevice("phone")
    argv = front_end.argv("trust", line_of(device), "--role", "controller")
    with terminal(argv, front_end.env) as person:
        person.expect(id_of(device))
        person.expect("Trust this device? [y/N] ")
        person.type("m\udcffybe\n")
        person.expect("Please answer y or n.")
        person.expect("Trust this device? [y/N] ")
        person.type("y\n")
        person.expect(f"Trusted: {id_of(device)} (phone) as controller")
        assert person.end() == 0
    assert front_end.trusted() == [id_of(device)]


@pytest.mark.parametrize("key", ["\n", "n\n", "\x03", "\x04"])
def test_enter_no_ctrl_c_and_ctrl_d_change_nothing(front_end: FrontEnd, key: str) -> None:
    old = front_end.trust(EphemeralDevice("old"))
    questions = {
        "revoke": [old],
        "trust": [line_of(EphemeralDevice("new")), "--role", "controller"],
    }
    for name, words in questions.items():
        with terminal(front_end.argv(name, *words), front_end.env) as person:
            person.expect("[y/N] ")
            person.type(key)
            assert person.end() == (130 if key == "\x03" else 1)
            assert "othing was changed" in " ".join(person.shown.split())
            assert "Traceback" not in person.shown
    assert front_end.trusted() == [old]


def test_ctrl_c_at_a_later_question_changes_nothing(tmp_path: Path) -> None:
    EphemeralDevice().write(tmp_path, max_controllers=2)
    front_end = FrontEnd(False, {**os.environ, "AUTH_MESH_DIR": str(tmp_path)})
    old = [front_end.trust(EphemeralDevice(f"old {n}")) for n in (1, 2)]
    argv = front_end.argv("trust", line_of(EphemeralDevice("new")), "--role", "controller")
    with terminal(argv, front_end.env) as person:
        person.expect("Which controller do you want to revoke? [1-2, Enter for none] ")
        person.type("2\n")
        person.expect("[y/N] ")
        person.type("\x03")
        assert person.end() == 130
        assert person.shown.endswith("Interrupted. Nothing was changed.\n")
    assert front_end.trusted() == old


def test_ctrl_c_while_something_runs_is_one_line(front_end: FrontEnd) -> None:
    with answering() as server:
        server.delay.clear()
        with terminal(front_end.argv("fetch", server.url), front_end.env) as person:
            assert server.asked.wait(30)
            person.type("\x03")
            assert person.end() == 130
            assert person.shown.replace("^C", "").strip() == "Interrupted."
        server.delay.set()


def test_fetch_on_a_terminal_says_what_a_rejection_means(front_end: FrontEnd) -> None:
    with answering() as server:
        server.status, server.body = 401, b'{"error": "unauthorized"}'
        root = server.url.partition("/path")[0]
        doctor = "manage.py amesh_doctor" if front_end.django else "amesh doctor"
        with terminal(front_end.argv("fetch", server.url), front_end.env) as person:
            person.expect('{"error": "unauthorized"}\n')
            person.expect("The server rejects this device")
            assert person.end() == 0
            assert f"To find the cause, run {doctor} {root}." in " ".join(person.shown.split())
        server.redirects = {"/near": server.url, "/far": "http://127.0.0.1:1/x"}
        for path, text in (
            ("/near", f"The server redirects to {server.url}."),
            ("/far", "The server redirects to http://127.0.0.1:1/x, which is another origin."),
        ):
            with terminal(front_end.argv("fetch", root + path), front_end.env) as person:
                person.expect(text)
                assert person.end() == 0
        with terminal(front_end.argv("fetch", "-L", f"{root}/near"), front_end.env) as person:
            person.expect(f"Redirected to {server.url}, signed again.")
            assert person.end() == 0


def test_a_line_from_a_pipe_leaves_the_question_to_the_terminal(front_end: FrontEnd) -> None:
    device = EphemeralDevice()
    argv = front_end.argv("trust", "-", "--role", "target")
    with terminal(argv, front_end.env, stdin=line_of(device).encode()) as person:
        person.expect("Trust this device? [y/N] ")
        person.type("y\n")
        assert person.end() == 0
    assert front_end.trusted() == [id_of(device)]


def test_a_line_may_be_pasted(front_end: FrontEnd) -> None:
    device = EphemeralDevice()
    with terminal(front_end.argv("trust", "-", "--role", "target", "--yes"), front_end.env) as person:
        person.expect("Ctrl-D")
        person.type(f"{line_of(device)}\n\x04")
        assert person.end() == 0
    assert front_end.trusted() == [id_of(device)]


def test_a_question_is_asked_with_json_too(front_end: FrontEnd) -> None:
    device = EphemeralDevice()
    argv = front_end.argv("trust", line_of(device), "--role", "target", "--json")
    with terminal(argv, front_end.env) as person:
        about = person.expect("[y/N] ")
        assert id_of(device) in about
        person.type("y\n")
        assert person.end() == 0
        assert json.loads(person.shown.partition("[y/N] ")[2].partition("\n")[2])["devices"][0]["refreshed"] is False


def test_colors_on_a_terminal_unless_no_color_is_set(front_end: FrontEnd) -> None:
    for env, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal(front_end.argv("list"), {**front_end.env, **env}) as person:
            assert person.end() == 0
            assert ("\x1b" in person.raw) is colored  # neither colors, nor bold and dim


def test_no_color_prints_no_escape_in_a_question_and_an_error(front_end: FrontEnd) -> None:
    argv = front_end.argv("trust", line_of(EphemeralDevice()), "--role", "target")
    with terminal(argv, {**front_end.env, "NO_COLOR": "1"}) as person:
        person.expect("[y/N] ")
        person.type("y\n")
        assert person.end() == 0
        assert "\x1b" not in person.raw
    with terminal(front_end.argv("revoke", "nobody"), {**front_end.env, "NO_COLOR": "1"}) as person:
        assert person.end() == 1
        assert "Error: " in person.raw and "\x1b" not in person.raw


def test_a_narrow_terminal_breaks_no_id_and_no_word(front_end: FrontEnd) -> None:
    device = EphemeralDevice("a name of several words that is longer than the terminal is wide")
    with terminal(front_end.argv("trust", line_of(device), "--role", "target"), front_end.env, columns=48) as person:
        shown = person.expect("[y/N] ")
        person.type("n\n")
        assert person.end() == 1
    assert f"Device ID    {id_of(device)}\n" in shown
    prose = shown[shown.index("Compare") :]
    assert max(map(len, prose.split("\n"))) < 48
    assert " ".join(prose.split()).startswith("Compare the device ID with the one that export-key or list shows")


def test_hostile_names_and_bodies_do_not_steer_the_terminal(front_end: FrontEnd) -> None:
    device = EphemeralDevice(HOSTILE)
    front_end.trust(device)
    with answering() as server:
        server.body = b"\x1b[2J\x1b]0;title\x07body\xff\n"
        for words in (["list"], ["fetch", server.url], ["revoke", id_of(device), "--yes"]):
            with terminal(front_end.argv(*words), front_end.env) as person:
                assert person.end() == 0
            assert "\x1b[2J" not in person.raw
            assert "\x1b" not in person.shown, "only styles may be there"
            assert not set("\x07\x9b\u202e") & set(person.raw)


def test_nothing_is_half_done_after_ctrl_c_in_init(tmp_path: Path) -> None:
    """Whenever Ctrl-C comes, there is an identity that works, or init can be run again."""
    for number, text in enumerate(["Looking", "secure-enclave", "keychain", "tpm2", "encrypted-file", "This device"]):
        path = tmp_path / str(number)
        argv = [sys.executable, "-m", "authmesh", "--dir", str(path), "init", "--name", "x", "--explain"]
        with terminal(argv, {}) as person:
            person.expect(text)
            person.type("\x03", at_once=True)
            code = person.end()
            assert "Traceback" not in person.shown
        if (path / "identity.json").exists():
            assert LocalDevice(path, environ={}).sign(b"x")
            assert FileAllowList(LocalDevice(path, environ={})).read() == []
        else:
            assert code == 130
            again = subprocess.run(argv, capture_output=True, cwd=ROOT)
            assert again.returncode == 0, again.stderr


def test_many_lines_from_a_pipe_are_one_question_on_the_terminal(front_end: FrontEnd) -> None:
    one, two = EphemeralDevice("one"), EphemeralDevice("two")
    argv = front_end.argv("trust", "-", "--role", "target")
    given = f"{line_of(one)}\n{line_of(two)}\n".encode()
    with terminal(argv, front_end.env, stdin=given) as person:
        table = person.expect("Trust these 2 devices? [y/N] ")
        assert f"  {id_of(one)}  one\n  {id_of(two)}  two\n" in table
        person.type("y\n")
        assert person.end() == 0
    assert front_end.trusted() == [id_of(one), id_of(two)]
