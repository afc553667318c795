"""Start Python programs without the time that a new interpreter spends on imports.

`amesh`, `manage.py`, and the servers take most of their time to import Django and authmesh. :func:`start` and :func:`run` replace
`subprocess.Popen` and `subprocess.run` for them. They start this module as a process, the fork server, which imports what most
programs import, and forks for each program. The fork gets arguments, environment, stdin, stdout, and stderr, runs the module or the
script as ``__main__``, and ends as Python ends: exit code, traceback, and signal are the interpreter's own. Between the fork server
and the program stands one more fork, which waits for the program, and sends its status to the test.

What makes a fork equal to a new program:

* The fork server only imports: no ``django.setup()``, no database, no thread. Each fork therefore reads the settings, the variables,
  and the device directory itself, and nothing that it keeps gets into another one. `test_fork_server.py` checks that.
* Some variables work only while an interpreter starts or imports, such as PYTHONWARNINGS and LANG. Programs with other values of
  these have a fork server of their own.
* The streams of the fork server are pipes, so that the streams of a fork are buffered as those of a captured program. A program on a
  terminal gets new ones.

A test that is about the process itself (imports at the start, options of the interpreter) uses subprocess.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[2]
#: Modules that commands and servers import, and that need no settings and no event loop.
IMPORTED = (
    "authmesh.client",
    "authmesh.commands.app",
    "authmesh.pairing.ceremony",
    "authmesh.protocol.fleet.feed",
    "django.contrib.admin",
    "django.contrib.auth.checks",
    "django.core.management",
    "django.db.backends.sqlite3.creation",
    "django.db.backends.sqlite3.introspection",
    "django.db.migrations.autodetector",
    "django.forms",
    "django.http",
    "jwt",
    "limits.aio.storage",
    "psycopg",
    "rest_framework.response",
    "twisted.internet.posixbase",
    "twisted.web.http",
)
#: The beginnings of the variables that are read while an interpreter starts, or a library is loaded.
AT_START = ("PYTHON", "LANG", "LC_", "LD_", "OPENSSL_", "TZ")
#: Maximum number of bytes of a command with its environment.
MAX_COMMAND = 200_000


class Process:
    """A program that was started, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, argv: Sequence[str], status: socket.socket, pipes: Sequence[IO[str] | None]) -> None:
        self.pid = pid
        self.args = argv
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None
        self._status = status

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.wait()

    def fileno(self) -> int:
        """Return a file descriptor that is readable after the end of the program, until someone waited for it."""
        return self._status.fileno()

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the program, and return its exit code."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                status = self._status.recv(16)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._status.close()
            if not status:
                raise RuntimeError(f"The fork that waits for {self.args} was killed.")
            self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return the rest of what the program prints on stdout and stderr, after its end."""
        out, err = (pipe.read() if pipe and not pipe.closed else "" for pipe in (self.stdout, self.stderr))
        self.wait(timeout)
        self.__exit__()
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """The test's side of a fork server."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(self, command: bytes, files: Sequence[int]) -> tuple[int, socket.socket]:
        """Return the number of a new process, and the socket on which its status comes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, suppress(ConnectionError):
            socket.send_fds(self.control, [command], [*files, theirs.fileno()])
        pid = ours.recv(16)
        if not pid:
            assert self.process.stderr
            raise RuntimeError(f"The fork server ended:\n{self.process.stderr.read().decode()}")
        return int(pid), ours


_servers: dict[tuple[object, ...], _Server] = {}
_lock = threading.Lock()


def serves(argv: Sequence[str | os.PathLike[str]]) -> bool:
    """Return True for ``python -m MODULE`` and ``python FILE``: the fork server can start these."""
    words = [os.fspath(word) for word in argv[:2]]
    return words[0] == sys.executable and (words[1] == "-m" or not words[1].startswith("-"))


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    terminal: bool = False,
    cwd: Path = ROOT,
) -> Process:
    """Start ``python -m MODULE`` or ``python FILE`` in a session of its own.

    Args:
        stdin, stdout, stderr: open files, which stay open, or `subprocess.PIPE` or `subprocess.DEVNULL`.
        terminal: make the terminal on stderr the controlling one.
        cwd: the folder in which the program runs. Defaults to the folder of the repository.
    """
    assert serves(argv), argv
    words = [os.fspath(word) for word in argv]
    key = (os.getpid(), *sorted(item for item in env.items() if item[0].startswith(AT_START)))
    command = json.dumps([words[1:], dict(env), terminal, str(cwd)]).encode()
    sys.audit("subprocess.Popen", words[0], words, None, env)  # the mark `process` is needed here too
    with ExitStack() as stack:
        opened = [_open(file, mode, stack) for file, mode in ((stdin, "w"), (stdout, "r"), (stderr, "r"))]
        with _lock:
            if key not in _servers:
                _servers[key] = _Server(env)
            pid, status = _servers[key].start(command, [file for file, _ in opened])
    return Process(pid, words, status, [pipe for _, pipe in opened])


def _open(file: int, mode: str, stack: ExitStack) -> tuple[int, IO[str] | None]:
    """Return the file for the program, and our end if it is a pipe."""
    if file == subprocess.DEVNULL:
        file = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, file)
    if file != subprocess.PIPE:
        return file, None
    reading, writing = os.pipe()
    ours, theirs = (writing, reading) if mode == "w" else (reading, writing)
    stack.callback(os.close, theirs)
    return theirs, open(ours, mode)


def run(
    argv: Sequence[str], *, env: Mapping[str, str], input: str = "", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE`` or ``python FILE`` in the folder of the repository, and return its result.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
    """
    with ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3))
        given.write(input)
        given.seek(0)
        process = start(argv, env=env, stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno())
        try:
            code = process.wait(timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())


def _next_command(control: socket.socket) -> list[str] | None:
    """Return the arguments of the next program in a fork for it, or None at the end of the tests."""
    while True:
        data, files, _, _ = socket.recv_fds(control, MAX_COMMAND, 4)
        if not data:
            return None
        with suppress(ChildProcessError):  # forks that waited, and are done
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            control.close()
            *streams, status = files
            words, env, terminal, cwd = json.loads(data)
            process = os.fork()
            if process:
                _wait(process, socket.socket(fileno=status), streams)
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            for number, file in enumerate(streams):
                os.dup2(file, number)
            os.closerange(3, max(files) + 1)
            if terminal:
                _use_terminal()
            return [str(word) for word in words]
        for file in files:
            os.close(file)


def _wait(process: int, status: socket.socket, streams: Sequence[int]) -> NoReturn:
    """Send the number of a process, and its status when it has ended."""
    for file in streams:
        os.close(file)
    with suppress(BrokenPipeError):  # nobody waits any more
        status.send(str(process).encode())
        status.send(str(os.waitpid(process, 0)[1]).encode())
    os._exit(0)


def _use_terminal() -> None:
    """Make the terminal on stderr the controlling one, so that Ctrl-C is a signal and /dev/tty opens it."""
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)
    for number, name, mode in ((0, "stdin", "rb"), (1, "stdout", "wb"), (2, "stderr", "wb")):
        of_server = getattr(sys, name)
        at_once = of_server.write_through  # PYTHONUNBUFFERED
        file = os.fdopen(number, mode, buffering=0 if at_once else -1, closefd=False)
        stream = io.TextIOWrapper(
            file, of_server.encoding, of_server.errors, line_buffering=not at_once, write_through=at_once
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Start programs. In a fork, be one."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that no fork looks at these objects, or copies their memory
    words = _next_command(socket.socket(fileno=int(sys.argv[1])))
    if words is None:
        return
    sys.path[0] = os.getcwd() if words[0] == "-m" else str(Path(words[0]).resolve().parent)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
