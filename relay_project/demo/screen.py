"""A terminal with a person at it: reads what a program shows, and types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from .stage import DemoError

_SECONDS = 60.0
_COLUMNS, _LINES = 120, 50
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A program on a terminal of its own.

    Args:
        process: the program.
        master: the file descriptor of the person's side.
        shown: the command line.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int, shown: str) -> None:
        self._process = process
        self._master = master
        self._command = shown
        self._text = ""
        self._seen = 0

    @property
    def text(self) -> str:
        """Everything that was shown so far, without colors and cursor movements."""
        return _STEERING.sub("", self._text).replace("\r\n", "\n").replace("\r", "\n")

    def read(self, pattern: str) -> tuple[str, ...]:
        """Wait for text that matches *pattern*, after what was read before, and return the groups.

        Raises:
            DemoError: the text does not appear.
        """
        deadline = time.monotonic() + _SECONDS
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            if time.monotonic() > deadline or not self._more():
                raise DemoError(f"{self._command} did not show the expected text ({pattern}). It showed:\n{self.text}")
        self._seen = found.end()
        return found.groups()

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def end(self) -> int:
        """Wait until the program ends, and return its exit code."""
        while self._more():
            pass
        return self._process.wait(_SECONDS)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return self._process.poll() is None
        try:
            found = os.read(self._master, 65536)
        except OSError:  # on Linux, the program has closed its terminal
            return False
        self._text += found.decode("utf-8", "replace")
        return bool(found)


@contextmanager
def screen(argv: Sequence[str], environment: Mapping[str, str], shown: str) -> Iterator[Screen]:
    """Run a program on a terminal, and end it after the block."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    process = subprocess.Popen(
        argv,
        env={**environment, "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Screen(process, master, shown)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(master)
