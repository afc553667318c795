"""A thread for functions that block while an event loop runs, with the database connections of the command's caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")


class DatabaseThread:
    """Runs functions one after the other in a thread, because an event loop must not use a database itself.

    Not asgiref's ``sync_to_async``: its thread has connections of its own, so it is outside the caller's transaction, does not see a
    test's database in memory, and leaves connections open.

    The thread works with the caller's connections. That is safe because the caller waits for the event loop meanwhile. The thread is
    started when it is first needed; at the end of the block it has finished everything that it began.
    """

    def __init__(self) -> None:
        self._lent: list[BaseDatabaseWrapper] = []
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> DatabaseThread:
        # Before the event loop runs, because Django has other connections inside of it.
        self._lent = list(connections.all())
        for connection in self._lent:
            connection.inc_thread_sharing()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._pool is not None:
                self._pool.shutdown()
        finally:
            while self._lent:
                self._lent.pop().dec_thread_sharing()

    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """Run a function in the thread, as :class:`authmesh.pairing.Blocking`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "amesh-database", initializer=lend_connections(self._lent))
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)


def lend_connections(lent: list[BaseDatabaseWrapper] | None = None) -> Callable[[], None]:
    """Return a function that another thread calls to use these database connections.

    Args:
        lent: connections that may be shared; None for those of this thread, which :class:`DatabaseThread` has made shareable.
    """
    connections_of_caller = list(connections.all()) if lent is None else lent

    def take_over() -> None:
        for connection in connections_of_caller:
            connections[connection.alias] = connection

    return take_over
