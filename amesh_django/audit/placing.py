"""Placing: events that are not changes of the allow list get their number and link, in batches, under the lock of the end of the log."""

from __future__ import annotations

import logging

from django.db.models import QuerySet

from amesh_django.models import AuditEvent
from amesh_django.trust import SealedList
from amesh_django.trust.chain import place
from amesh_django.trust.damage import each_row
from amesh_django.trust.sealing import LogEnd

logger = logging.getLogger("amesh_django.audit")

#: Events that one transaction places. A change of the allow list waits for at most that.
BATCH_EVENTS = 1000


def is_end_damaged(sealed: SealedList) -> bool:
    """Return True if the row that says where the log ends was changed or removed outside Django."""
    sealed.unlock()
    end = sealed.read_end()
    return not end[1] if end is not None else AuditEvent.objects.using(sealed.using).filter(seq__isnull=False).exists()


def place_all(sealed: SealedList) -> int:
    """Place all events that wait, a batch at a time, and return how many were placed."""
    total = 0
    while True:
        count = place_batch(sealed)
        total += count
        if count < BATCH_EVENTS:
            return total


def place_batch(sealed: SealedList) -> int:
    """Place the oldest events that wait, at most a batch, and return how many. The seal of the list is not touched.

    Events that amesh did not write stay without a place, and nothing is placed after an end that it did not write.

    Args:
        sealed: the list whose keys the events have.

    Raises:
        AllowListBusy: the end of the log was locked all the time.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed.unlock()
    if not _waiting(sealed).exists():
        return 0
    return sealed.while_end_locked(lambda end: _place(sealed, end))


def _place(sealed: SealedList, found: tuple[LogEnd, bool] | None) -> int:
    keys = sealed.log_keys()
    if found is None and not AuditEvent.objects.using(sealed.using).filter(seq__isnull=False).exists():
        sealed.make_end(keys)
        found = sealed.lock_end()
    if found is None or not found[1]:
        logger.critical(
            "The row that says where the audit log ends was changed or removed outside Django. Events get no place in the log until the "
            "allow list is changed next. To see what is wrong, run: manage.py amesh_audit --verify"
        )
        return 0
    end, placed, forged = found[0], [], 0
    for _pk, event in each_row(_waiting(sealed).order_by("id")):
        if event is None or not sealed.is_genuine_event(event):
            forged += 1
            continue
        place(keys, event, end)
        end = LogEnd(event.seq or 0, event.link)
        placed.append(event)
        if len(placed) == BATCH_EVENTS:
            break
    if forged:
        logger.critical("%d events of the audit log were inserted outside Django. They get no place in it.", forged)
    if placed:
        AuditEvent.objects.using(sealed.using).bulk_update(placed, ["seq", "link"], batch_size=200)
        sealed.write_end(keys, end)
    return len(placed)


def _waiting(sealed: SealedList) -> QuerySet[AuditEvent]:
    return AuditEvent.objects.using(sealed.using).filter(seq__isnull=True, revision__isnull=True)
