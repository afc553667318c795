"""An `ssh` for the documents: `ssh HOST amesh …` runs amesh as that host would, with a home of its own.

Starting Python for each of 40 hosts would take a minute. So one process has everything loaded, forks for each call, and gives the fork
the streams of the caller. ``python -m tests.support.hosts SOCKET FOLDER``
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

from amesh_django.test.devices import CHEAP_ARGON2
from authmesh.client import enrolling  # noqa: F401 -- loaded before the forks
from authmesh.commands import app
from tests.support import cheap_keys

#: The program `ssh`. Without the site module, it starts in a moment.
PROGRAM = """#!{python} -IS
import json, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    socket.send_fds(connection, [json.dumps(sys.argv[1:]).encode()], [0, 1, 2])
    sys.exit(connection.recv(1)[0])
"""


def write_program(folder: Path, path: Path) -> None:
    """Write the program `ssh` into a folder.

    Args:
        folder: the folder.
        path: the socket at which the process with the hosts listens.
    """
    folder.mkdir(exist_ok=True)
    (folder / "ssh").write_text(PROGRAM.format(python=sys.executable, path=str(path)))
    (folder / "ssh").chmod(0o755)


def _run(home: Path, words: list[str], streams: list[int]) -> int:
    """Run amesh in a fork, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
            home.mkdir(parents=True, exist_ok=True)
            os.environ["HOME"] = str(home)
            code = app.run(words)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(path: str, folder: Path) -> None:
    cheap_keys.use(CHEAP_ARGON2)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # anyone who sees it can connect
        while True:
            connection, _ = listening.accept()
            with connection:
                text, streams, _, _ = socket.recv_fds(connection, 65536, 3)
                host, program, *words = json.loads(text)
                assert program == "amesh", program
                code = _run(folder / host, words, streams)
                for stream in streams:
                    os.close(stream)
                connection.sendall(bytes([code]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
