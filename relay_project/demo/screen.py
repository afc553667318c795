"""A terminal with a person at it: what a program shows, and what is typed."""

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
    """What one program shows on a terminal of its own.

    Args:
        process: the program.
        master: the side where the person sits.
        shown: its command line.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int, shown: str) -> None:
        self._process = process
        self._master = master
        self._command = shown
        self._text = ""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was shown so far, without colours and cursor movements."""
        return _STEERING.sub("", self._text).replace("\r\n", "\n").replace("\r", "\n")

    def read(self, pattern: str) -> tuple[str, ...]:
        """Wait for a text that *pattern* fits, after what was read before; its groups.

        Raises:
            DemoError: it does not come.
        """
        deadline = time.monotonic() + _SECONDS
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            if time.monotonic() > deadline or not self._more():
                raise DemoError(f"{self._command} did not show what was expected ({pattern}). It showed:\n{self.text}")
        self._seen = found.end()
        return found.groups()

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        while self._more():
            pass
        return self._process.wait(_SECONDS)

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return self._process.poll() is None
        try:
            found = os.read(self._master, 65536)
        except OSError:  # Linux says so where the program has closed its terminal
            return False
        self._text += found.decode("utf-8", "replace")
        return bool(found)


@contextmanager
def screen(argv: Sequence[str], environment: Mapping[str, str], shown: str) -> Iterator[Screen]:
    """Run a program on a terminal; it is ended with the block."""
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
