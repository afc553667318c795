"""A program of the fork server and a program that Python starts do the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import databases, fork_server
from tests.support.forked_python import ForkedPython
from tests.support.services import ROOT, until
from tests.support.terminal import terminal

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

#: Prints all that a command can see of its process, changes what the next command must not see, and ends in a given way.
PROGRAM = """
import os, signal, sys, threading
from django.apps import apps
from django.conf import settings
from django.db import connections
print(sys.argv, __name__, repr(sys.stdin.read()), sorted(os.environ.items()), os.getcwd(), sys.path, sys.flags)
print([(s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.seekable()) for s in (sys.stdout, sys.stderr)])
print(sorted(os.listdir("/proc/self/fd")), threading.active_count(), sys.warnoptions)
print([(number, str(signal.getsignal(number))) for number in signal.valid_signals()])
print(apps.ready, settings.configured, hasattr(connections._connections, "default"))
settings.DEBUG, os.environ["LEFT"] = True, "over"
print("on stderr", file=sys.stderr)
if sys.argv[1] == "exit":
    sys.exit(int(sys.argv[2]))
if sys.argv[1] == "say":
    sys.exit("Error: said")
if sys.argv[1] == "raise":
    raise ValueError("raised")
if sys.argv[1] == "kill":
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def both(argv: list[str], env: dict[str, str], given: str = "") -> list[tuple[int, str, str]]:
    alone = subprocess.run(argv, env=env, input=given, capture_output=True, text=True, cwd=ROOT)
    forked = fork_server.run(argv, env=env, input=given)
    return [(done.returncode, done.stdout, done.stderr) for done in (forked, alone)]


@pytest.fixture
def env(sqlite_database: dict[str, str], tmp_path: Path) -> dict[str, str]:
    own = {"AUTH_MESH_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    return {**os.environ, **databases.environment(sqlite_database), **own}


@pytest.mark.parametrize("words", [["exit", "0"], ["exit", "7"], ["say"], ["raise"], ["kill"]])
def test_a_fork_sees_and_ends_as_a_program(words: list[str], env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(PROGRAM)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "cli")])
    forked, alone = both([sys.executable, "-m", "shown", *words], env, "größer\n")
    assert forked[0] == alone[0]
    for ours, theirs in zip(forked[1].splitlines(), alone[1].splitlines(), strict=True):
        assert ours == theirs
    # The fork's traceback has the lines of the server above those of the program.
    assert forked[2].splitlines()[-1] == alone[2].splitlines()[-1]
    assert "on stderr" in forked[2]


@pytest.mark.parametrize(
    "words", [["-m", "authmesh", "list"], ["-m", "django", "amesh_list", "--json"], ["manage.py", "nonsense"]]
)
def test_commands(words: list[str], env: dict[str, str]) -> None:
    forked, alone = both([sys.executable, *words], env)
    assert forked == alone


def test_on_a_terminal(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(PROGRAM)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "cli")])
    argv = [sys.executable, "-m", "shown", "exit", "7"]
    ended = []
    for words in (argv, ["env", *argv]):  # `env` is not Python, so Python starts the second one
        with terminal(words, env, columns=1000) as person:
            person.type("größer\n\x04")
            ended.append((person.end(), person.shown))
    for ours, theirs in zip(*(shown.splitlines() for _, shown in ended), strict=True):
        assert ours == theirs
    assert ended[0][0] == ended[1][0]
    assert ended[0][0] == 7 and "on stderr" in ended[0][1]


def test_with_pipes(env: dict[str, str]) -> None:
    with fork_server.start([sys.executable, "-m", "code", "-q"], env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write("import os; print(os.getpid(), flush=True); input()\n")
        process.stdin.flush()
        assert process.stdout.readline().split()[-1] == str(process.pid)
        assert process.poll() is None
        process.terminate()
        _, err = process.communicate()
    assert (process.returncode, process.poll()) == (-15, -15)
    assert "Traceback" not in err


def test_a_fork_that_takes_too_long_is_killed(env: dict[str, str], tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    (tmp_path / "slow.py").write_text(f"import time\nheld = open({str(held)!r}, 'w')\ntime.sleep(300)")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "cli")])
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            fork_server.run([sys.executable, "-m", "slow"], env=env, timeout=2)
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""  # as soon as no process has it open
    finally:
        os.close(reader)


@pytest.mark.parametrize("words", [["exit", "7"], ["raise"], ["kill"]])
def test_a_program_that_a_shell_starts(words: list[str], env: dict[str, str], tmp_path: Path) -> None:
    """In a folder of its own, which has a module that the program imports."""
    (tmp_path / "near.py").touch()
    (tmp_path / "shown.py").write_text(f"import near\n{PROGRAM}")
    ended = []
    with ForkedPython(tmp_path) as programs:
        for python in (sys.executable, "python"):
            path = f"{programs.folder}{os.pathsep}{env['PATH']}"
            command = ["bash", "-c", f"exec {python} shown.py {' '.join(words)}"]
            done = subprocess.run(
                command, env={**env, "PATH": path}, input="größer\n", capture_output=True, text=True, cwd=tmp_path
            )
            assert "on stderr" in done.stderr
            ended.append((done.returncode, done.stdout))
    assert ended[0] == ended[1]


def test_signals_for_a_program_that_a_shell_starts(env: dict[str, str], tmp_path: Path) -> None:
    """It gets the signals, and is killed with the program that stands for it."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(300)"
    )
    with ForkedPython(tmp_path) as programs:
        for sent, code in ((signal.SIGTERM, 9), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
            argv = [programs.folder / "python", tmp_path / "slow.py"]
            with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout
                pid = int(process.stdout.readline())
                assert pid != process.pid
                process.send_signal(sent)
                assert process.wait() == code
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
