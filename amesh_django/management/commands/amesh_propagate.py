"""``manage.py amesh_propagate``: carry changes to the servers of this hub, without Celery."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connections

from amesh_django.fleet import bell, delivery, sweeping
from amesh_django.trust.database import database

logger = logging.getLogger("amesh_django.fleet")

#: Servers that are served at the same time.
THREADS = 8
#: Seconds between two passes if the database tells of changes, and if it does not.
SWEEP_SECONDS, POLL_SECONDS = 1.0, 0.5


class Command(BaseCommand):
    """Delivers until SIGTERM or Ctrl-C with ``--watch``; once without."""

    help = (
        "Carry changes of the allow list to the servers of this hub, and place the events of the audit log. Without --watch, each server "
        "that can be reached is brought up to date once. A project with Celery needs this command only if no worker runs."
    )
    requires_system_checks = []  # noqa: RUF012 -- what is wrong with the project must not stop a revocation

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--watch",
            action="store_true",
            help="Go on until SIGTERM or Ctrl-C. With PostgreSQL, a change is delivered at once, otherwise within half a second.",
        )

    def handle(self, *args: Any, watch: bool, **options: Any) -> None:
        """Deliver.

        Raises:
            CommandError: the database is down, and ``--watch`` is not given.
        """
        with Propagation() as propagation:
            if watch:
                self._watch(propagation)
                return
            try:
                count = propagation.sweep()
            except (DatabaseError, InterfaceError) as error:
                raise CommandError(f"The database cannot be used ({type(error).__name__}). Nothing was sent.") from None
        self.stdout.write(f"{count} servers were sent something." if count != 1 else "1 server was sent something.")

    def _watch(self, propagation: Propagation) -> None:
        ended = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            ended.set()

        before = [(number, signal.signal(number, end)) for number in (signal.SIGTERM, signal.SIGINT)]
        self.stdout.write("Changes are carried to the servers of this hub. Ctrl-C stops it.")
        self.stdout.flush()
        try:
            watch(propagation.sweep, ended)
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def watch(sweep: Callable[[], object], ended: threading.Event) -> None:
    """Call a function every second or half second, and as soon as the database tells of a change.

    Args:
        sweep: the function. If the database is down, it is called again later.
        ended: ends the loop.
    """
    ear = Ear(database())
    try:
        while not ended.is_set():
            try:
                sweep()
                ear.wait(ended)
            except (DatabaseError, InterfaceError) as error:
                logger.error("The database cannot be used (%s). It is tried again in a second.", type(error).__name__)
                ear.close()
                connections.close_all()
                ended.wait(SWEEP_SECONDS)
    finally:
        ear.close()


class Propagation:
    """Sweeps, and delivers in threads. At the end of the block, all that was begun is finished."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "amesh-deliver")
        self._serving: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Propagation:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def sweep(self) -> int:
        """Begin to serve each server that lacks something, and return their number.

        Raises:
            django.db.Error: the database is down.
        """
        return len(sweeping.sweep(ring=self._ring).rung)

    def _ring(self, pk: int) -> None:
        with self._lock:
            if pk in self._serving:
                return
            self._serving.add(pk)
        self._pool.submit(self._deliver, pk)

    def _deliver(self, pk: int) -> None:
        try:
            delivery.deliver(pk)
        except Exception as error:  # in a thread, nobody else would hear of it
            logger.error("A delivery was broken off (%s). It is tried again.", type(error).__name__, exc_info=error)
        finally:
            with self._lock:
                self._serving.discard(pk)
            connections.close_all()


class Ear:
    """Waits for the next pass: until PostgreSQL tells of a change, or for a moment.

    Args:
        using: database alias.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._connection: Any = None

    def wait(self, ended: threading.Event) -> None:
        """Return after a change, or after half a second; after a second if the database would tell of a change.

        Raises:
            django.db.Error: the database is down.
        """
        if self._connection is None and connections[self._using].vendor == "postgresql":
            self._listen()
        if self._connection is None:
            ended.wait(POLL_SECONDS)
            return
        with self._connection.wrap_database_errors:
            end = time.monotonic() + SWEEP_SECONDS
            while not ended.is_set() and time.monotonic() < end:
                if [*self._connection.connection.notifies(timeout=0.1, stop_after=1)]:
                    return

    def _listen(self) -> None:
        connection = connections[self._using].copy()
        connection.ensure_connection()
        if not hasattr(connection.connection, "notifies") or not callable(connection.connection.notifies):
            connection.close()  # psycopg 2
            return
        connection.set_autocommit(True)
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {bell.CHANNEL}")
        self._connection = connection

    def close(self) -> None:
        """Stop listening."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
