"""Sweeping: every second, whatever a ring has missed is found. Any process of any host may do it, also several at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.db import DatabaseError, IntegrityError, transaction

from amesh_django.approvals import notices
from amesh_django.audit import sweeping as audit
from amesh_django.models import Server, Sweep
from amesh_django.spelling import manage_py
from amesh_django.trust.database import database
from amesh_django.usage import pruning
from authmesh.protocol.errors import AmeshError

from . import servers
from .delivery import is_silent, report_forged
from .leases import is_reachable, moment_of
from .rarely import rarely

logger = logging.getLogger("amesh_django.fleet")


@dataclass(frozen=True, slots=True)
class Swept:
    """What was done.

    Attributes:
        rung: primary keys of the servers that were rung.
        forged: number of rows that were changed outside Django.
    """

    rung: tuple[int, ...] = ()
    forged: int = 0


def sweep(*, ring: Callable[[int], object], now: float | None = None, patience: float = 0.0) -> Swept:
    """Ring each server that can be reached and lacks changes or a sign of life. Then do what the log, the mails, and the counts need.

    Args:
        ring: called with the primary key of each such server.
        now: Unix seconds. Defaults to the current time.
        patience: seconds within which a change is left to the process that made it, which has rung already.

    Raises:
        django.db.Error: the database is down.
    """
    moment = time.time() if now is None else now
    _note(moment)
    found = _ring_all(ring, moment, patience)
    try:
        audit.sweep(moment_of(moment))
    except AmeshError as error:
        _complain("The audit log was not swept", error)
    pruning.prune_sometimes(moment_of(moment))
    notices.sweep(moment_of(moment))
    return found


def seconds_since(now: float | None = None) -> float | None:
    """Return the seconds since the sweeper ran last, or None if it never has.

    Args:
        now: Unix seconds. Defaults to the current time.
    """
    moment = moment_of(time.time() if now is None else now)
    last = Sweep.objects.using(database()).filter(pk=1).values_list("swept_at", flat=True).first()
    return max(0.0, (moment - last).total_seconds()) if last is not None else None


def _ring_all(ring: Callable[[int], object], now: float, patience: float) -> Swept:
    rows = Server.objects.using(database())
    rung: list[int] = []
    forged = 0
    try:
        head = servers.head() if rows.exists() else servers.Head("", 0)
        reachable = set(rows.filter(is_reachable(now)).values_list("pk", flat=True))
        rung_already = _RungAlready(head, now, patience)
        for server in servers.every():
            if not servers.is_genuine(server):
                report_forged(server)
                forged += 1
                continue
            servers.renew(server)
            is_due = (servers.is_dirty(server, head) and server not in rung_already) or is_silent(server, now)
            if server.pk in reachable and is_due and _is_rung(ring, server.pk):
                rung.append(server.pk)
    except AmeshError as error:
        _complain("Nothing is carried to the servers", error)
    return Swept(tuple(rung), forged)


class _RungAlready:
    """The servers that lack nothing but what was changed a moment ago: a second ring would only hold up the others."""

    def __init__(self, head: servers.Head, now: float, patience: float) -> None:
        self._head, self._now, self._patience = head, now, patience
        self._found: dict[int, bool] = {}

    def __contains__(self, server: Server) -> bool:
        if not self._patience or server.attempts or server.epoch != self._head.epoch:
            return False
        if server.acked not in self._found:
            self._found[server.acked] = self._is_young(server.acked)
        return self._found[server.acked]

    def _is_young(self, after: int) -> bool:
        at = servers.changed_after(after, self._head)
        return at is not None and 0 <= (moment_of(self._now) - at).total_seconds() < self._patience


def _is_rung(ring: Callable[[int], object], pk: int) -> bool:
    """Ring a server. Return False if that failed: it must not keep the others from being rung."""
    try:
        ring(pk)
    except DatabaseError:
        raise
    except Exception as error:  # any that a broker and its library may raise
        if rarely("sweeper"):
            logger.warning(
                "Deliveries could not be handed to Celery (%s). They are handed over later.", type(error).__name__
            )
        return False
    return True


def _note(now: float) -> None:
    """Note that the sweeper has run."""
    rows, moment = Sweep.objects.using(database()), moment_of(now)
    if not rows.filter(pk=1).update(swept_at=moment):
        try:
            with transaction.atomic(using=database()):
                rows.create(pk=1, swept_at=moment)
        except IntegrityError:  # another sweeper has just begun
            pass


def _complain(what: str, error: AmeshError) -> None:
    if rarely(f"sweeper {type(error).__name__}"):
        logger.error("%s: %s", what, error.text(manage_py))
