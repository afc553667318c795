"""Lines that a person types, or a program writes to stdin, awaited beside an event loop.

No thread waits for them: a thread that reads can't be stopped, and a question must give way when the other side leaves. The terminal
stays as it is, so there is nothing to be put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys

_CHUNK = 4096
#: How often stdin is looked at where the event loop can't watch it, in seconds.
_POLL = 0.05


class Keyboard:
    """Standard input, a line at a time."""

    def __init__(self) -> None:
        self._pending = b""

    def forget(self) -> None:
        """What a person has typed so far is the answer to no question. What a program has written stays."""
        descriptor = _descriptor()
        if descriptor is None or not os.isatty(descriptor):
            return
        import termios

        self._pending = b""
        with contextlib.suppress(termios.error, OSError):
            termios.tcflush(descriptor, termios.TCIFLUSH)

    async def line(self) -> str | None:
        """The next line, without its end; None if there will be none. May be cancelled."""
        descriptor = _descriptor()
        if descriptor is None:
            return _without_descriptor()
        while b"\n" not in self._pending:
            await _readable(descriptor)
            try:
                read = os.read(descriptor, _CHUNK)
            except BlockingIOError:  # another program has made it so
                await asyncio.sleep(_POLL)
                continue
            except OSError:  # the terminal is gone
                read = b""
            if not read:
                break
            self._pending += read
        line, end, self._pending = self._pending.partition(b"\n")
        return line.decode("utf-8", "replace") if line or end else None


def _descriptor() -> int | None:
    try:
        return sys.stdin.fileno() if sys.stdin is not None else None
    except (OSError, ValueError):  # no file, such as the one of a test; or closed
        return None


def _without_descriptor() -> str | None:
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except (OSError, ValueError):
        line = ""
    return line.rstrip("\n") if line else None


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except (OSError, NotImplementedError):  # a file or /dev/null: the event loop can't watch these
        while not select.select([descriptor], [], [], 0)[0]:
            await asyncio.sleep(_POLL)
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
