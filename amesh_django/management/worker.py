"""A thread for what blocks while an event loop runs, in the database connections of whoever called the command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")


class DatabaseThread:
    """Runs functions one after the other beside the event loop, which must not touch a database itself.

    The thread has no connections of its own: it works in the caller's transaction, sees what the caller sees (a test's database in
    memory, too), and leaves none open behind it. That is safe because the caller waits for the event loop meanwhile.

    A context manager; the thread is made when it is first needed, and at the end it has finished what it had begun.
    """

    def __init__(self) -> None:
        self._lent: list[BaseDatabaseWrapper] = []
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> DatabaseThread:
        # Now, for inside of an event loop Django has other connections.
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
        """See :class:`authmesh.pairing.Blocking`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "amesh-database", initializer=self._take_over)
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _take_over(self) -> None:
        for connection in self._lent:
            connections[connection.alias] = connection
