"""The bell: after a commit, the process that delivers is told that the servers may lack something. It never blocks, and never raises.

One daemon thread of each process rings, because to hand a task to a broker may take any time: a broker that was stopped accepts
connections, and never answers. What comes meanwhile is rung once, when the thread goes on. A ring may be lost; the sweeper finds what is dirty.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import connections, transaction

from amesh_django.models import Server
from amesh_django.trust.database import database

from .leases import is_reachable
from .rarely import rarely

logger = logging.getLogger("amesh_django.fleet")

#: Called with the primary key of a server that may lack changes. May raise, and may block.
Ringer = Callable[[int], None]

#: Name of the notification of PostgreSQL for which ``amesh_propagate --watch`` listens.
CHANNEL = "amesh_fleet"
#: Seconds that a process that ends waits for its rings.
END_SECONDS = 1.0


class _Bell:
    """The rings that this process has to make, and the thread that makes them."""

    def __init__(self) -> None:
        self.ringer: Ringer | None = None
        self._waiting: dict[int, None] = {}
        self._changed = threading.Condition()
        self._is_ringing = False
        self._thread: threading.Thread | None = None

    def ring(self, pks: list[int]) -> None:
        with self._changed:
            self._waiting |= dict.fromkeys(pks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="amesh-bell", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Return True as soon as nothing is left to ring, or False after some seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_ringing, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_ringing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                pks, self._waiting, self._is_ringing = list(self._waiting), {}, True
            self._ring_all(pks)

    def _ring_all(self, pks: list[int]) -> None:
        for pk in pks:
            try:
                if self.ringer is not None:
                    self.ringer(pk)
            except Exception as error:  # any that a broker and its library may raise
                if rarely("bell"):
                    logger.warning(
                        "The task that tells the servers of a change could not be handed to Celery (%s). The sweeper delivers the change.",
                        type(error).__name__,
                    )


_bell = _Bell()


def connect(ringer: Ringer | None) -> None:
    """Set what is called for each server that may lack changes. It is called in a thread of its own.

    Args:
        ringer: the function; None if nothing can be rung in this process.
    """
    _bell.ringer = ringer


def ring_on_commit(using: str) -> None:
    """Ring once the open transaction is committed, or at once if none is open.

    Args:
        using: database alias.
    """
    transaction.on_commit(lambda: _ring(using), using=using, robust=True)


def on_list_changed(**kwargs: Any) -> None:
    """Ring, because a change of the allow list was committed. Receiver of ``list_changed``."""
    _ring(database())


def wait(seconds: float = END_SECONDS) -> bool:
    """Wait until all was rung, some seconds at most. Return True if all was."""
    return _bell.wait(seconds)


def _ring(using: str) -> None:
    """Ring for each server that can be reached. In a hub without servers, this is one small query.

    Who has the lease of a server now looks for more once it has given the lease back, so it finds what is committed already.
    """
    try:
        pks = list(Server.objects.using(using).filter(is_reachable(time.time())).values_list("pk", flat=True))
        if not pks:
            return
        if connections[using].vendor == "postgresql":
            with connections[using].cursor() as cursor:
                cursor.execute(f"NOTIFY {CHANNEL}")
        if _bell.ringer is not None:
            _bell.ring(pks)
    except Exception as error:  # the change is committed, and must not seem to have failed
        logger.error("The servers could not be told of a change (%s). The sweeper delivers it.", type(error).__name__)


def _after_fork() -> None:
    """Begin without a thread: threads do not outlive a fork, and the parent rings what it had to ring."""
    global _bell
    ringer, _bell = _bell.ringer, _Bell()
    _bell.ringer = ringer


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: wait())
