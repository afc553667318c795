"""Lines that a person types, or that a program writes to stdin, awaited while an event loop runs.

Not a thread, and not a library for line editing: a thread that reads cannot be stopped, but a question must be withdrawn when the
other device leaves; and a library changes the mode of the terminal, which must then be restored however the command ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys

_CHUNK = 4096
#: Seconds between two looks at stdin, if the event loop cannot watch it.
_POLL_SECONDS = 0.05


class Keyboard:
    """Standard input, one line at a time."""

    def __init__(self) -> None:
        self._pending = b""

    def forget(self) -> None:
        """Discard what a person has typed so far, because it answers no question. Keep what a program has written."""
        descriptor = _descriptor()
        if descriptor is None or not os.isatty(descriptor):
            return
        import termios  # not on every system: needed for a terminal only

        self._pending = b""
        with contextlib.suppress(termios.error, OSError):
            termios.tcflush(descriptor, termios.TCIFLUSH)

    async def line(self) -> str | None:
        """Return the next line without its end, or None if standard input has ended. The call may be cancelled."""
        descriptor = _descriptor()
        if descriptor is None:
            return _without_descriptor()
        while b"\n" not in self._pending:
            await _readable(descriptor)
            try:
                read = os.read(descriptor, _CHUNK)
            except BlockingIOError:  # another program has set stdin to non-blocking
                await asyncio.sleep(_POLL_SECONDS)
                continue
            except OSError:  # the terminal was closed
                read = b""
            if not read:
                break
            self._pending += read
        line, end, self._pending = self._pending.partition(b"\n")
        return line.decode("utf-8", "replace") if line or end else None


def _descriptor() -> int | None:
    try:
        return sys.stdin.fileno() if sys.stdin is not None else None
    except (OSError, ValueError):  # closed, or not a file
        return None


def _without_descriptor() -> str | None:
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except (OSError, ValueError):
        line = ""
    return line.rstrip("\n") if line else None


async def _readable(descriptor: int) -> None:
    """Wait until the descriptor has something to read, or has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except (OSError, NotImplementedError):  # the event loop cannot watch a regular file or /dev/null
        while not select.select([descriptor], [], [], 0)[0]:
            await asyncio.sleep(_POLL_SECONDS)
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
