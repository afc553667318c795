"""`listen` and `invite` without a person: driven by a program, through pipes and files, and with something missing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import segno

from authmesh.commands.terminal import qr
from authmesh.commands.terminal.large import large
from tests.commands.pairing_terminals import Machine, machine, program, rest, wrong
from tests.relay.relay_world import address, serving
from tests.support.front_ends import FRONT_ENDS, HOSTILE
from tests.support.services import ROOT
from tests.support.sources import FORBID

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("relay")) as server:
        yield address(server)


@pytest.fixture
def laptop(tmp_path: Path, relay: str) -> Machine:
    """Return a machine that runs `amesh`."""
    return machine(tmp_path, "laptop", relay)


@pytest.fixture
def server(tmp_path: Path, relay: str, sqlite_database: dict[str, str]) -> Machine:
    """Return a machine that runs `manage.py`."""
    return machine(tmp_path, "server", relay, sqlite_database)


@pytest.fixture(params=FRONT_ENDS)
def either(request: pytest.FixtureRequest) -> Machine:
    """Return each front end in turn."""
    chosen: Machine = request.getfixturevalue("laptop" if request.param == "amesh" else "server")
    return chosen


# --- a program --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v1"])
@pytest.mark.parametrize("target_is", ["server", "laptop"])
def test_two_programs_pair(target_is: str, version: str, server: Machine, laptop: Machine) -> None:
    target, controller = (server, laptop) if target_is == "server" else (laptop, server)
    options = ["--v1"] if version == "v1" else []
    with program(target, "listen", "--shell", *options) as there:
        code = there.until("code")
        assert re.fullmatch(r"[1-9]\d{5}", code["code"])
        assert code["relay"] == target.relay
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", code["expires"])
        assert code["command"] == f"amesh invite {code['code']} --relay {target.relay}"
        with program(controller, "invite", *options) as here:
            assert here.until("question")["question"] == "code"
            here.answer(code["code"])
            shown = here.until("verification_code")["code"]
            for one, other, role in ((there, controller, "controller"), (here, target, "target")):
                if one is there:
                    there.until("peer")
                peer = next(step for step in one.steps if step["step"] == "peer")
                assert (peer["deviceId"], peer["role"], peer["known"]) == (other.id, role, None)
                assert peer["friendlyName"] == other.device.identity.friendly_name
                assert peer["permissions"] == ({"shell": True} if role == "controller" else {})
            question = there.until("question")
            assert (question["question"], question["again"], question["seconds"]) == ("verification_code", False, 90)
            there.answer(shown)
            there.until("verified")
            assert here.until("question")["question"] == "verified"
            assert not controller.listed()
            here.answer("y")
            ends = there.end(), here.end()
            warnings = [bool(options)] * 2
            assert [code for code, _ in ends] == [0, 0], ends
            assert [any("warning" in line for line in err) for _, err in ends] == warnings
            assert [line for _, err in ends for line in err if "warning" not in line] == []
            assert there.names == [
                *(
                    "connecting",
                    "connected",
                    "code",
                    "matched",
                    "peer",
                    "question",
                    "verified",
                    "decided",
                    "stored",
                    "finished",
                ),
            ]
            assert here.names == [
                *("question", "connecting", "connected", "matched", "peer", "verification_code", "agreed"),
                *("question", "verified", "stored", "finished"),
            ]
            assert there.steps[-1]["device"]["deviceId"] == controller.id
            assert there.steps[-1]["device"]["permissions"] == {"shell": True}
            assert (there.steps[-1]["refreshed"], there.steps[-1]["replaced"]) == (False, None)
            assert here.steps[-1]["device"]["deviceId"] == target.id
    assert list(target.listed()) == [controller.id] and list(controller.listed()) == [target.id]


def test_a_program_replaces_a_controller(server: Machine, laptop: Machine, tmp_path: Path, relay: str) -> None:
    old = machine(tmp_path, HOSTILE, relay)
    server.trust(old.device)
    for answer in ("", old.id):
        with (
            program(server, "listen") as there,
            program(laptop, "invite", there.until("code")["code"], "--yes") as here,
        ):
            there.until("question")
            there.answer(here.until("verification_code")["code"])
            question = there.until("question")
            assert (question["question"], question["limit"]) == ("replace", 1)
            assert [entry["deviceId"] for entry in question["controllers"]] == [old.id]
            there.answer(answer)
            (code, err), (other, their_err) = there.end(), here.end()
            if answer:
                assert (code, other, err, their_err) == (0, 0, [], [])
                assert there.steps[-1]["replaced"] == old.id
            else:
                assert (code, other) == (1, 1)
                assert [line["error"] for line in err + their_err] == ["declined", "peer_refused"]
    assert list(server.listed()) == [laptop.id]


def test_a_program_is_told_of_errors(either: Machine, tmp_path: Path, relay: str) -> None:
    other = machine(tmp_path, "other", relay)
    with program(either, "listen") as there, program(other, "invite", there.until("code")["code"]) as here:
        there.until("question")
        there.answer(wrong(here.until("verification_code")["code"]))
        (code, err), (other_code, other_err) = there.end(), here.end()
        assert (code, [line["error"] for line in err]) == (1, ["wrong_verification_code"])
        assert (other_code, [line["error"] for line in other_err]) == (1, ["peer_refused"])
        assert set(err[0]) == {"error", "message"}
    with program(either, "listen") as there:
        there.until("code")
        there.process.send_signal(signal.SIGINT)
        code, err = there.end()
        assert (code, err) == (130, [{"error": "interrupted", "message": "Interrupted. Nothing was stored."}])
    with program(either, "invite", "482916") as here:
        code, err = here.end()
        assert (code, [line["error"] for line in err]) == (1, ["otc_not_found"])
    assert not either.listed()


# --- no terminal ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_plain_text(either: Machine, tmp_path: Path, relay: str) -> None:
    other = machine(tmp_path, "other", relay)
    there = either.start("listen")
    assert there.stdout and there.stdin and there.stderr
    said = []
    while not (found := re.search(r"^  amesh invite (\d{6})", said[-1] if said else "")):
        said.append(there.stdout.readline())
        assert said[-1], there.stderr.read()
    here = other.start("invite", found[1], "--yes")
    assert here.stdout
    while not (shown := re.fullmatch(r"Verification code  (\d{3} \d{3})\n", line := here.stdout.readline())):
        assert line
    out, err = rest(there, f"{shown[1]}\n")
    out = "".join(said) + out
    assert there.returncode == 0, err
    rest(here)
    assert here.returncode == 0
    for text in (out, err):
        assert not {"\x1b", "\r", "█"} & set(text)
    assert "The code is valid for 60 seconds.\n" in out
    assert f"One-time code  {found[1][:3]} {found[1][3:]}\n" in out
    assert "Verification code: " in err and other.id in err
    assert list(either.listed()) == [other.id]


@pytest.mark.parametrize("source", ["/dev/null", "an empty file", "closed", "an empty pipe"])
@pytest.mark.unversioned  # it is about the streams, which test_streams.py tries on both pairs
def test_nobody_at_stdin(source: str, either: Machine, tmp_path: Path, relay: str) -> None:
    """The other device receives the refusal at once."""
    other = machine(tmp_path, "other", relay)
    (tmp_path / "empty").touch()
    redirect = {"/dev/null": "</dev/null", "an empty file": f"<{tmp_path}/empty", "closed": "<&-"}.get(source, "< <(:)")
    with program(other, "listen") as there:
        code = there.until("code")["code"]
        argv = ["bash", "-c", f'exec "$@" {redirect}', "bash", *either.argv("invite", code)]
        here = subprocess.Popen(
            argv, env=either.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert here.stdout
        while not (shown := re.fullmatch(r"Verification code  (\d{3} \d{3})\n", line := here.stdout.readline())):
            assert line, rest(here)
        there.until("question")
        there.answer(shown[1])
        ended, err = there.end()
        assert (ended, [line["error"] for line in err]) == (1, ["peer_refused"])
        _, said = rest(here)
        assert here.returncode == 1
        assert "The question whether the other screen says “Verified” was not answered, so the answer is no." in said
    assert not either.listed() and not other.listed()


def test_answers_from_a_file(either: Machine, tmp_path: Path, relay: str) -> None:
    other = machine(tmp_path, "other", relay)
    with program(other, "listen") as there:
        code = there.until("code")["code"]
        answers = tmp_path / "answers"
        answers.write_text(f"{code[:3]}-{code[3:]}\r\nperhaps\ny")
        with answers.open() as file:
            here = either.start("invite", stdin=file.fileno())
        assert here.stdout
        while not (shown := re.fullmatch(r"Verification code  (\d{3} \d{3})\n", line := here.stdout.readline())):
            assert line, rest(here)
        there.until("question")
        there.answer(shown[1])
        assert there.end() == (0, [])
        _, err = rest(here)
        assert here.returncode == 0, err
        assert "Please answer y or n." in err
    assert list(either.listed()) == [other.id]


# --- drawings ---------------------------------------------------------------------------------------------------------


def modules(drawing: list[str]) -> list[list[bool]]:
    """Return the dark modules of a drawing, without the quiet zone."""
    halves = {" ": (False, False), "▀": (True, False), "▄": (False, True), "█": (True, True)}
    rows = []
    for line in drawing:
        pairs = [halves[char] for char in line]
        rows += [[not upper for upper, _ in pairs], [not lower for _, lower in pairs]]
    size = len(rows[0])
    return [row[qr.BORDER : -qr.BORDER] for row in rows[qr.BORDER : size - qr.BORDER]]


@pytest.mark.parametrize("columns", [0, 100])
def test_the_qr_code_is_the_command(columns: int, either: Machine) -> None:
    if columns:
        with either.at("listen", "--qr", columns=columns) as there:
            there.expect("the code is valid for")
            there.type("\x03")
            assert there.end() == 130
            shown, raw = there.shown, there.raw
        drawing = re.findall(r"\x1b\[(?:97;40|37;40)m([▀▄█ ]+)\x1b\[0m", raw)
        assert drawing, "light on dark, whatever the colors of the terminal are"
    else:
        process = either.start("listen", "--qr", PYTHONIOENCODING="utf-8")
        assert process.stdout
        shown = ""
        while "The code is valid for" not in shown:
            shown += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest(process)
        assert process.returncode == 130
        assert "\x1b" not in shown
        drawing = re.findall(r"^(?=[▀█]{30})[▀▄█ ]+$|^██[▀▄█ ]{30,}$", shown, re.MULTILINE)
    command = re.search(r"^  (amesh invite .*)$", shown, re.MULTILINE)
    assert command
    expected = [[bool(dark) for dark in row] for row in segno.make_qr(command[1], error="m").matrix]
    assert modules(drawing) == expected
    # The code itself comes last, so that it stays on a small screen.
    assert shown.index(drawing[-1]) < shown.index("One-time code")


def test_large_digits_differ() -> None:
    drawn = {digit: tuple(large(digit * 6, columns=80, encoding="utf-8")) for digit in "0123456789"}
    assert len(set(drawn.values())) == 10
    assert all(len(lines) == 5 for lines in drawn.values())
    assert set("".join(large("012345", columns=80, encoding="ascii"))) == {"#", " "}
    width = max(map(len, large("000000", columns=80, encoding="utf-8")))
    assert large("000000", columns=width + 1, encoding="utf-8") and not large("000000", columns=width, encoding="utf-8")


def test_a_terminal_without_blocks(either: Machine) -> None:
    either.more["PYTHONIOENCODING"] = "ascii:backslashreplace"
    with either.at("listen") as there:
        there.expect("the code is valid for")
        assert "##" in there.shown and "\\u" not in there.shown
    done = either.run("listen", "--qr")
    assert done.returncode == 1
    assert "The encoding of this terminal (ascii) cannot show a QR code." in done.stderr
    assert done.stdout == ""


# --- what is refused before anything is dialled ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["listen", "--no-input"], 1, "--no-input was given"),
        (["invite", "482916", "--no-input"], 1, "--no-input was given"),
        (["invite", "--yes", "--no-input"], 1, "--no-input was given"),
        (["listen", "--qr", "--json"], 2, "--qr draws for people"),
        (["invite", "12345"], 1, "This is not a one-time code: it has six digits"),
        (["invite", "012345"], 1, "This is not a one-time code: it has six digits"),
        (["listen", "--relay", "https://relay.example/"], 1, "The address of the relay is not valid"),
        (["invite", "482916", "--relay", "relay.example"], 1, "The address of the relay is not valid"),
        (["listen", "--replace", "am_nobody"], 1, "No trusted device has the device ID"),
        (["listen", "482916"], 2, ""),
        (["invite", "482916", "--shell"], 2, ""),
    ],
)
@pytest.mark.unversioned  # it is refused before anything is dialled
def test_what_can_fail_at_once_does(words: list[str], code: int, says: str, either: Machine) -> None:
    either.relay = "ws://127.0.0.1:1/ws"
    done = either.run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_device_without_identity(either: Machine, tmp_path: Path) -> None:
    either.path = tmp_path / "nowhere"
    for words in (["listen"], ["invite", "482916"]):
        done = either.run(*words)
        assert done.returncode == 1
        assert "init --name NAME" in done.stderr


def test_no_input_goes_with_yes(laptop: Machine) -> None:
    done = laptop.run("invite", "482916", "--yes", "--no-input")
    assert "The relay does not know this one-time code" in done.stderr


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("websockets", ["listen"], "pip install 'amesh-django[cli]'"),
        ("websockets", ["invite", "482916"], "pip install 'amesh-django[cli]'"),
        ("segno", ["listen", "--qr"], "pip install 'amesh-django[cli]'"),
    ],
)
def test_a_missing_package_says_which_extra_has_it(name: str, words: list[str], says: str, either: Machine) -> None:
    code = f"import runpy; sys.argv = {either.argv(*words)[2:]!r}; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    argv = [sys.executable, "-c", FORBID.format(names={name}, code=code)]
    done = subprocess.run(argv, env=either.env, cwd=ROOT, capture_output=True, text=True, input="")
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr


def test_nothing_secret_is_logged(either: Machine, tmp_path: Path, relay: str) -> None:
    """One-time and verification codes appear on the screen only."""
    other = machine(tmp_path, "other", relay)
    log = tmp_path / "log"
    debug = tmp_path / "debug.py"
    debug.write_text(
        "import logging, runpy, sys\n"
        f"logging.basicConfig(filename={str(log)!r}, level=1)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    for one in (either, other):
        one.argv = lambda *words, made=one.argv: [sys.executable, str(debug), *made(*words)[2:]]  # type: ignore[method-assign]
    with program(either, "listen") as there:
        code = there.until("code")["code"]
        with program(other, "invite", code, "--yes") as here:
            there.until("question")
            shown = here.until("verification_code")["code"]
            there.answer(shown)
            assert (there.end(), here.end()) == ((0, []), (0, []))
    assert "asyncio" in log.read_text()
    assert not re.search(rf"{code}|{shown}", log.read_text())
