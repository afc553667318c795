"""A thread lock that survives a fork: a child process must not wait for a thread that exists only in its parent."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType


class ForkSafeLock:
    """A mutual-exclusion lock between threads that is always free in a forked child.

    The standard library has no such lock, so this class is kept: a server that forks its workers may fork while another thread
    unlocks a key. That thread does not exist in the child, so the child would wait for the lock forever. The data that the lock
    protects must be consistent at every moment, for example a cache whose entries are set in one step.
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
        """Acquire the lock outside a ``with`` block. Return False if that took longer than *seconds*."""
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        """Release the lock that :meth:`acquire` acquired."""
        self._lock.release()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in list(_locks):
        lock._lock = threading.Lock()


os.register_at_fork(after_in_child=_open_all)
