"""Run `amesh` and `manage.py` without the time that a new interpreter spends on imports.

Such a program takes most of its time to import Django and authmesh. :func:`run` replaces `subprocess.run` for commands without a
terminal. It starts this module as a process, the server, which imports what all commands import, and forks for each command. The
fork gets arguments, environment, stdin, stdout and stderr, runs the module or the script as ``__main__``, and ends as Python ends:
exit code, traceback, and signal are the interpreter's own. The server waits for the fork, and sends its status to the test.

What makes a fork equal to a new program:

* The server only imports: no ``django.setup()``, no database, no thread. Each fork therefore reads the settings, the variables, and
  the device directory itself, and nothing that it keeps gets into another one. `test_fork_server.py` checks that.
* Some variables work only while an interpreter starts or imports, such as PYTHONWARNINGS and LANG. Commands with other values of
  these have a server of their own.
* The streams of the server are pipes, so that the streams of a fork are buffered as those of a captured program.

A test that is about the process itself (imports at the start, options of the interpreter, terminals, signals) uses subprocess.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from tests.support.services import ROOT

#: Modules that the commands import, and that need no settings.
IMPORTED = (
    "authmesh.client",
    "authmesh.commands.app",
    "authmesh.pairing.ceremony",
    "django.core.management",
    "django.db.backends.sqlite3.introspection",
    "django.forms",
    "django.http",
    "rest_framework.compat",
)
#: The beginnings of the variables that are read while an interpreter starts, or a library is loaded.
AT_START = ("PYTHON", "LANG", "LC_", "LD_", "OPENSSL_", "TZ")
#: Maximum number of bytes of a command with its environment.
MAX_COMMAND = 200_000


class _Server:
    """A server for the commands of one thread at a time."""

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

    def run(self, command: bytes, files: Sequence[int], timeout: float | None) -> int:
        self.control.settimeout(timeout)
        status = b""
        with suppress(ConnectionError):
            socket.send_fds(self.control, [command], files)
            status = self.control.recv(16)
        if not status:
            assert self.process.stderr
            raise RuntimeError(f"The fork server ended:\n{self.process.stderr.read().decode()}")
        return os.waitstatus_to_exitcode(int(status))

    def kill(self) -> None:
        """End the server and the command that it runs."""
        with self.control, self.process, suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


_servers: dict[tuple[object, ...], list[_Server]] = {}
_lock = threading.Lock()


def run(
    argv: Sequence[str], *, env: Mapping[str, str], input: str = "", timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE`` or ``python FILE`` in the folder of the repository, and return its result.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
    """
    assert argv[0] == sys.executable, argv
    key = (os.getpid(), *sorted(item for item in env.items() if item[0].startswith(AT_START)))
    with _lock:
        idle = _servers.setdefault(key, [])
        server = idle.pop() if idle else _Server(env)
    with ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3))
        given.write(input)
        given.seek(0)
        command = json.dumps([list(argv[1:]), dict(env)]).encode()
        try:
            code = server.run(command, [file.fileno() for file in (given, out, err)], timeout)
        except BaseException as error:
            server.kill()
            if isinstance(error, TimeoutError):
                raise subprocess.TimeoutExpired(argv, timeout or 0) from None
            raise
        with _lock:
            idle.append(server)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, code, out.read(), err.read())


def _next_command(control: socket.socket) -> list[str] | None:
    """Return the arguments of the next command in a fork for it, or None at the end of the tests."""
    while True:
        data, files, _, _ = socket.recv_fds(control, MAX_COMMAND, 3)
        if not data:
            return None
        process = os.fork()
        if not process:
            words, env = json.loads(data)
            os.environ.clear()
            os.environ.update(env)
            for stream, file in enumerate(files):
                os.dup2(file, stream)
            control.close()
            os.closerange(3, max(files) + 1)
            return [str(word) for word in words]
        for file in files:
            os.close(file)
        control.send(str(os.waitpid(process, 0)[1]).encode())


def main() -> None:
    """Serve commands. In a fork, run one."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # so that no fork looks at these objects, or copies their memory
    words = _next_command(socket.socket(fileno=int(sys.argv[1])))
    if words is None:
        return
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
