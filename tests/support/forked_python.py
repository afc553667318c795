"""Programs named `python`, `amesh`, `gunicorn`, … that a shell or a demo starts, and that the fork server runs (see fork_server.py).

    with ForkedPython(folder) as programs:
        subprocess.run(["bash", "-c", "python manage.py migrate"], env={"PATH": f"{programs.folder}:{os.environ['PATH']}"})

Such a program gives its arguments, environment, folder, and streams to the fork server, passes signals on, and ends as the program
that the fork server started. It runs Python itself if it has a terminal, which cannot be passed on, and for ``python -c`` and
``python -``. Keys that the programs make are cheap (see cheap_keys.py).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.support import cheap_keys, fork_server

BIN = Path(sys.executable).parent
NAMES = ("python", "amesh", "django-admin", "gunicorn")
#: Without the site module, it starts in a moment.
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys

name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name != "python":
    words = [os.path.join({folder!r}, name), *words]
if not words or words[0].startswith("-") and words[0] != "-m" or any(os.isatty(stream) for stream in (0, 1, 2)):
    os.execv({python!r}, [{python!r}, *words])
passed_on = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until the program is known to which they go
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({path!r})
socket.send_fds(connection, [json.dumps([words, dict(os.environ), os.getcwd()]).encode()], [0, 1, 2])
group = int(connection.recv(16))
for number in passed_on:
    signal.signal(number, lambda number, frame: os.killpg(group, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
code = int(connection.recv(16))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class ForkedPython:
    """The programs, in a folder of their own. They run during the block.

    Args:
        where: an existing folder, in which the folder is made.

    Attributes:
        folder: the folder with the programs.
    """

    def __init__(self, where: Path) -> None:
        self.folder = where / "forked-python"
        self.folder.mkdir()
        path = self.folder / "socket"
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path))
        self._listening.listen(128)
        for name in NAMES:
            text = PROGRAM.format(python=sys.executable, folder=str(BIN), path=str(path))
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def __enter__(self) -> ForkedPython:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    """Run one program to its end. It is killed if the program that gave it to us is."""
    with connection:
        data, files, _, _ = socket.recv_fds(connection, fork_server.MAX_COMMAND, 3)
        if not data:  # it was killed before it said what it wants
            return
        words, env, cwd = json.loads(data)
        making = any(word.removeprefix("amesh_") in cheap_keys.MAKING for word in words[1:])
        cheaply = ["-m", "tests.support.cheap_keys"] if making else []
        streams = dict(zip(("stdin", "stdout", "stderr"), files, strict=True))
        process = fork_server.start([sys.executable, *cheaply, *words], env=env, cwd=Path(cwd), **streams)
        for file in files:
            os.close(file)
        with suppress(ConnectionError):
            connection.send(str(process.pid).encode())
        ready, _, _ = select.select([connection, process], [], [])
        if process not in ready:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        with suppress(ConnectionError):
            connection.send(str(code).encode())
