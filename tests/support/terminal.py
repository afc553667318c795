"""A program on a pseudo-terminal of its own: its output, typed keys, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import fork_server
from tests.support.services import ROOT

SECONDS = 30.0
_STYLE = re.compile(r"\x1b\[[0-9;]*m")

# Makes the terminal on stderr the controlling one, so that Ctrl-C is a signal and /dev/tty opens it.
_ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass
class Terminal:
    """The person's side of a terminal."""

    process: subprocess.Popen[bytes] | fork_server.Process
    master: int
    seconds: float = SECONDS
    raw: str = ""
    _looked_at: int = 0

    @property
    def shown(self) -> str:
        """Everything that was shown so far, without colors, with plain line ends."""
        return _STYLE.sub("", self.raw).replace("\r\n", "\n")

    def expect(self, text: str) -> str:
        """Wait until `text` is shown after what was expected before. Return what was shown in between, including `text`."""
        deadline = time.monotonic() + self.seconds
        while (at := self.shown.find(text, self._looked_at)) < 0:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{text!r} was not shown. The terminal shows:\n{self.shown[self._looked_at :]}")
        start, self._looked_at = self._looked_at, at + len(text)
        return self.shown[start : self._looked_at]

    def type(self, text: str, *, at_once: bool = False) -> None:
        """Press keys; `\\n` is Enter, `\\x03` is Ctrl-C, `\\x04` is Ctrl-D. Ctrl-C comes while the program waits, unless `at_once`."""
        if text == "\x03" and not at_once:
            self._wait_until_it_waits()
        os.write(self.master, os.fsencode(text))

    def _wait_until_it_waits(self) -> None:
        """Wait until the program waits. Python checks for signals before and after a system call, not in the microseconds between."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "S":
                return
            time.sleep(0.01)

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        while self._read():
            pass
        return self.process.wait(self.seconds)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], self.seconds)
        try:
            found = os.read(self.master, 65536) if ready else b""
        except OSError:  # Linux reports it after the last program has closed the terminal
            found = b""
        self.raw += found.decode(errors="replace")
        return bool(found)


@contextmanager
def terminal(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str],
    *,
    columns: int = 100,
    stdin: bytes | None = None,
    cwd: Path = ROOT,
    seconds: float = SECONDS,
) -> Iterator[Terminal]:
    """Run a program on a terminal of that width. With `stdin`, it reads these bytes from a pipe and keeps its terminal.

    Nothing that is expected may take longer than `seconds`.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, **env, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        if env.get(name) == os.environ.get(name):  # inherited, not requested by the test
            environment.pop(name, None)
    reading, writing = (slave, None) if stdin is None else os.pipe()
    streams = {"stdin": reading, "stdout": slave, "stderr": slave}
    process: subprocess.Popen[bytes] | fork_server.Process
    if cwd == ROOT and fork_server.serves(argv):
        process = fork_server.start(argv, env=environment, terminal=True, **streams)
    else:
        process = subprocess.Popen([sys.executable, "-c", _ON_TERMINAL, *argv], cwd=cwd, env=environment, **streams)
    if writing is not None:
        os.close(reading)
        os.write(writing, stdin or b"")
        os.close(writing)
    os.close(slave)
    try:
        yield Terminal(process, master, seconds)
    finally:
        process.kill()
        process.wait()
        os.close(master)
