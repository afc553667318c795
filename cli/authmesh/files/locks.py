"""A thread lock that survives a fork: a child must not wait for a thread that exists in its parent only."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType


class ForkSafeLock:
    """A mutual-exclusion lock between threads; a forked child finds it open.

    Servers that fork their workers may fork while another thread unlocks a key. That thread does not exist in the child, so
    nobody there would ever release what it held. What the lock guards must be sound at every moment (filled in one step).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def acquire(self, seconds: float) -> bool:
        """Take it; False if it was not to be had in that time. Outside a ``with`` block it is for :meth:`release`."""
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        """Let it go."""
        self._lock.release()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in list(_locks):
        lock._lock = threading.Lock()


os.register_at_fork(after_in_child=_open_all)
