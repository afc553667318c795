"""The newest changes in the audit log, each verified once by a process for all of its servers.

An event that was verified stays what it was, whatever is done to its row afterwards: amesh wrote it, and the seal binds its place.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import Max

from amesh_django.models import AuditEvent
from amesh_django.spelling import manage_py
from amesh_django.trust import SealedList
from amesh_django.trust.chain import is_same, link_after
from amesh_django.trust.damage import each_row
from amesh_django.trust.places import log_start
from amesh_django.trust.sealing import LogEnd, SealRow
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.errors import Run

from .rarely import rarely

logger = logging.getLogger("amesh_django.fleet")

#: Changes that a process keeps.
MAX_KEPT = 200


class Gap(Exception):
    """The log lacks a revision, so it does not say all that has happened."""


@dataclass(frozen=True, slots=True)
class _Tail:
    """Verified changes up to a place in the log.

    Attributes:
        epoch: epoch of the list.
        start: revision after which these are all changes.
        end: the place.
        changes: the changes, the oldest first.
    """

    epoch: str
    start: int
    end: LogEnd
    changes: tuple[AuditEvent, ...]

    def up_to(self, seal: SealRow) -> tuple[AuditEvent, ...] | None:
        """Return the changes up to the end that a seal binds, or None if that is no place here."""
        if self.end == seal.log_end:
            return self.changes
        for count, change in enumerate(self.changes, 1):
            if (change.seq, change.link) == seal.log_end:
                return self.changes[:count]
        return None

    def cut(self) -> _Tail:
        """Return it without the oldest changes, if there are too many."""
        if len(self.changes) <= MAX_KEPT:
            return self
        start = self.changes[-MAX_KEPT - 1].revision or 0
        return _Tail(self.epoch, start, self.end, tuple(_after(self.changes, start)))


_tails: weakref.WeakKeyDictionary[SealedList, _Tail] = weakref.WeakKeyDictionary()
_lock = ForkSafeLock()


def changes_after(sealed: SealedList, seal: SealRow | None, after: int) -> Iterator[AuditEvent]:
    """Yield the changes after a revision along the chain of the log, up to the end that the seal binds.

    The chain has every event in its place, so one that was removed or changed is missed, even if others of its revision are left.

    Args:
        sealed: the allow list.
        seal: its seal, which is genuine.
        after: the revision.

    Raises:
        Gap: a number has no event that amesh wrote after the one before.
    """
    if seal is None:
        return
    with _lock:  # so that one thread reads what all of them need
        tail = _newest(sealed, seal)
    found = tail.up_to(seal) if tail is not None and tail.start <= after else None
    if found is not None:
        yield from _after(found, after)
        return
    walk, kept = _walk(sealed, seal, _end_of(sealed, after)), list[AuditEvent]()
    for change in walk:
        kept.append(change)
        if len(kept) > MAX_KEPT:
            break
    else:
        _tails[sealed] = _Tail(seal.epoch, after, seal.log_end, tuple(_after(kept, after)))
    yield from _after(kept, after)
    yield from walk


def _after(changes: list[AuditEvent] | tuple[AuditEvent, ...], revision: int) -> Iterator[AuditEvent]:
    return (change for change in changes if (change.revision or 0) > revision)


def _newest(sealed: SealedList, seal: SealRow) -> _Tail | None:
    """Return what is kept, with the changes that have come since; None if it is not of this list, or does not lead to its seal."""
    tail = _tails.get(sealed)
    if tail is None or tail.epoch != seal.epoch:
        return None
    if tail.end.seq < seal.audit_seq:
        try:
            tail = _Tail(tail.epoch, tail.start, seal.log_end, (*tail.changes, *_walk(sealed, seal, tail.end))).cut()
        except Gap:  # the whole way is tried, and says what is missing
            return None
        _tails[sealed] = tail
    return tail


def _walk(sealed: SealedList, seal: SealRow, last: LogEnd) -> Iterator[AuditEvent]:
    """Yield the changes between a place in the log and the end that the seal binds.

    Raises:
        Gap: as for :func:`changes_after`.
    """
    start, end = last, seal.audit_seq
    rows = AuditEvent.objects.using(sealed.using).filter(seq__gt=start.seq, seq__lte=end).order_by("seq", "id")
    events = (event for _pk, event in each_row(rows))
    for seq, same in itertools.groupby(events, key=lambda event: event.seq if event is not None else None):
        candidates = list(same)
        good = next((one for one in candidates if one is not None and _is_after(sealed, last, one)), None)
        if good is None or seq != last.seq + 1:
            raise Gap
        if len(candidates) > 1:
            _report_forged()
        last = LogEnd(last.seq + 1, good.link)
        if good.revision is not None:
            yield good
    if last.seq < end:
        raise Gap
    if end > start.seq and last != seal.log_end:
        raise Gap
    beyond = AuditEvent.objects.using(sealed.using).filter(revision__isnull=False, seq__gt=end)
    if beyond.exists():
        now = sealed.read_seal()
        if now is not None and now.log_end == seal.log_end:  # otherwise they came with a change that was made just now
            _report_forged()


def _end_of(sealed: SealedList, revision: int) -> LogEnd:
    """Return the place of the last event of a revision, or of an earlier one; where the log begins if there is none.

    Raises:
        Gap: the event with that place is another one than amesh wrote there, so that what follows might not be all.
    """
    rows, start = AuditEvent.objects.using(sealed.using), log_start(sealed)
    number = rows.filter(revision__lte=revision, seq__gt=start.seq).aggregate(found=Max("seq"))["found"]
    if number is None:
        return start
    links = rows.filter(seq=number - 1).values_list("link", flat=True) if number > start.seq + 1 else [start.link]
    places = [LogEnd(number - 1, link) for link in links]
    for _pk, found in each_row(rows.filter(seq=number)):
        if found is None or found.revision is None or found.revision > revision:
            continue
        if any(_is_after(sealed, place, found) for place in places):
            return LogEnd(number, found.link)
    raise Gap


def _is_after(sealed: SealedList, last: LogEnd, event: AuditEvent) -> bool:
    links = (link_after(keys, last.link, last.seq + 1, event.mac) for keys in sealed.all_keys)
    return sealed.is_genuine_event(event) and any(is_same(link, event.link) for link in links)


def _report_forged() -> None:
    if rarely("forged event"):
        logger.critical(
            "The audit log has an event that amesh did not write. It is not carried to the servers. To see what is wrong, run: %s",
            manage_py(Run("audit", "--verify")),
        )
