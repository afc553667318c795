"""Placing: events that are not changes of the allow list get their number and link, in batches, under the lock of the end of the log."""

from __future__ import annotations

import logging
from typing import NamedTuple

from django.db.models import QuerySet

from amesh_django.models import AuditEvent
from amesh_django.trust import SealedList
from amesh_django.trust.chain import place
from amesh_django.trust.damage import each_row
from amesh_django.trust.sealing import LogEnd

logger = logging.getLogger("amesh_django.audit")

#: Events that one transaction places. A change of the allow list waits for at most that.
BATCH_EVENTS = 1000
#: Database alias → number of forged events that was logged last.
_told: dict[str, int] = {}


def is_end_damaged(sealed: SealedList) -> bool:
    """Return True if the row that says where the log ends was changed or removed outside Django."""
    sealed.unlock()
    end = sealed.read_end()
    return not end[1] if end is not None else AuditEvent.objects.using(sealed.using).filter(seq__isnull=False).exists()


class Placed(NamedTuple):
    """What was done with the events that waited.

    Attributes:
        events: number of those that got their place.
        forged: number of those that amesh did not write. They get none.
    """

    events: int
    forged: int


def place_all(sealed: SealedList) -> Placed:
    """Place all events that wait, the oldest first, at most a batch in one transaction. The seal of the list is not touched.

    Events that amesh did not write stay without a place. They are recognized before the lock is taken: however many somebody inserts,
    no change of the list waits for them. Nothing is placed after an end that amesh did not write.

    Args:
        sealed: the list whose keys the events have.

    Raises:
        AllowListBusy: the end of the log was locked all the time.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed.unlock()
    placed = forged = 0
    last: int | None = None
    while True:
        waiting = _waiting(sealed) if last is None else _waiting(sealed).filter(pk__gt=last)
        pks = list(waiting.order_by("pk").values_list("pk", flat=True)[:BATCH_EVENTS])
        genuine = _genuine(sealed, pks)
        forged += len(pks) - len(genuine)
        if genuine:
            names = [event.pk for event in genuine]
            count = sealed.while_end_locked(lambda end, names=names: _place(sealed, end, names))  # type: ignore[misc]
            if count is None:
                break
            placed += count
        if len(pks) < BATCH_EVENTS:
            break
        last = pks[-1]
    _warn(sealed, forged)
    return Placed(placed, forged)


def _place(sealed: SealedList, found: tuple[LogEnd, bool] | None, pks: list[int]) -> int | None:
    """Place events, and return how many; None if the end of the log was damaged."""
    keys = sealed.log_keys()
    if found is None and not AuditEvent.objects.using(sealed.using).filter(seq__isnull=False).exists():
        sealed.make_end(keys)
        found = sealed.lock_end()
    if found is None or not found[1]:
        logger.critical(
            "The row that says where the audit log ends was changed or removed outside Django. Events get no place in the log until the "
            "allow list is changed next. To see what is wrong, run: manage.py amesh_audit --verify"
        )
        return None
    end, placed = found[0], _genuine(sealed, pks)  # read again: another process may have placed them
    for event in placed:
        place(keys, event, end)
        end = LogEnd(event.seq or 0, event.link)
    if placed:
        AuditEvent.objects.using(sealed.using).bulk_update(placed, ["seq", "link"], batch_size=200)
        sealed.write_end(keys, end)
    return len(placed)


def _genuine(sealed: SealedList, pks: list[int]) -> list[AuditEvent]:
    """Return the events among these that wait and that amesh wrote."""
    events = each_row(_waiting(sealed).filter(pk__in=pks).order_by("pk"))
    return [event for _pk, event in events if event is not None and sealed.is_genuine_event(event)]


def _warn(sealed: SealedList, forged: int) -> None:
    """Log how many events were forged, unless this process has said so already."""
    if forged and _told.get(sealed.using) != forged:
        logger.critical("%d events of the audit log were inserted outside Django. They get no place in it.", forged)
    _told[sealed.using] = forged


def _waiting(sealed: SealedList) -> QuerySet[AuditEvent]:
    return AuditEvent.objects.using(sealed.using).filter(seq__isnull=True, revision__isnull=True)
