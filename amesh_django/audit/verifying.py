"""Verifying the audit log: the first fault, by name."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby

from django.db.models import Count, F, Max, QuerySet
from django.utils.translation import gettext as _

from amesh_django.models import AuditEvent
from amesh_django.trust import SealedList
from amesh_django.trust.chain import is_same, link_after
from amesh_django.trust.damage import UNREADABLE, each_row, reading
from amesh_django.trust.places import Place, log_start, read_place
from amesh_django.trust.sealing import LogEnd, SealRow
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

#: Events after which the progress is told.
_STEP = 1000
#: Age in seconds from which an event without a place is a fault: nobody places events.
MAX_UNSEALED_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the log.

    Attributes:
        name: ``changed``, ``missing``, ``inserted``, ``cut_off``, ``old_end``, ``list_seal``, or ``unsealed``.
        text: the fault in a few words, such as ``missing 41–43``.
        about: a sentence that explains it.
    """

    name: str
    text: str
    about: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification.

    Attributes:
        events: number of events with a place that were verified.
        unsealed: number of events without a place.
        fault: the first fault, or None.
        start: number of the last event that was archived; 0 if none was.
    """

    events: int
    unsealed: int
    fault: Fault | None
    start: int


class AuditLogFault(AmeshError):
    """The audit log was changed outside Django, or its events are not placed."""

    code = "audit_log_fault"


class _Found(Exception):
    """The first fault was found."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def verify(
    sealed: SealedList,
    now: dt.datetime,
    after: int = 0,
    begin: LogEnd | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verified:
    """Verify every event. Changes of the list wait only while the newest events are verified, unless there is a fault.

    Args:
        sealed: the list whose keys the events have.
        now: the time, as Django's ``timezone.now`` returns it.
        after: number of an event to begin after, because a fault up to it is known.
        begin: place of a checkpoint to begin after. Events up to it are not verified.
        progress: called now and then with the number of events that were verified.

    Raises:
        AllowListBusy: the list could not be locked.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed.unlock()
    walk = _Walk(sealed, after, begin, progress)
    end = sealed.read_end()
    if end is not None and end[1]:
        try:
            walk.follow(end[0].seq)
        except _Found:  # perhaps the log was rekeyed meanwhile: look again, with nobody writing
            walk = _Walk(sealed, after, begin, progress)
    fault = None
    try:
        sealed.while_locked(walk.finish)
        walk.check_unplaced(now)
    except _Found as found:
        fault = found.fault
    unplaced = AuditEvent.objects.using(sealed.using).filter(seq__isnull=True).count()
    return Verified(walk.count, unplaced, fault, walk.start)


class _Walk:
    """A walk along the chain. Its methods raise :class:`_Found` at the first fault."""

    def __init__(
        self, sealed: SealedList, after: int, begin: LogEnd | None, progress: Callable[[int], None] | None
    ) -> None:
        self._sealed = sealed
        self._progress = progress
        self._start = log_start(sealed)
        self._last = max(begin or LogEnd(), self._start)
        #: False if the event before the first one is gone, so that its link is not known.
        self._is_anchored = True
        #: Number of events that were verified.
        self.count = 0
        if after > self._start.seq:
            known = next((event for _pk, event in each_row(self._rows().filter(seq=after))), None)
            self._last = LogEnd(after, known.link if known is not None else "")
            self._is_anchored = known is not None

    @property
    def start(self) -> int:
        """Number of the last event that was archived."""
        return self._start.seq

    def follow(self, to: int) -> None:
        """Verify the events up to a number."""
        with closing(self._readable(self._rows().filter(seq__gt=self._last.seq, seq__lte=to))) as events:
            for seq, same in groupby(events, key=lambda event: event.seq):
                self._step(int(seq or 0), list(same))
        if self._last.seq < to:
            what = _("cut off after %(last)d") % {"last": self._last.seq}
            about = _("The log ended with event %(to)d, and all events after %(last)d are gone.")
            raise _Found(Fault("cut_off", what, about % {"to": to, "last": self._last.seq}))

    def finish(self, seal: SealRow | None, end: tuple[LogEnd, bool] | None) -> None:
        """Verify the rest, while nobody writes.

        Args:
            seal: the seal of the list.
            end: as :meth:`~amesh_django.trust.chain.ChainedRows.read_end` returns it.
        """
        is_sealed = seal is not None and self._sealed.is_genuine(seal)
        known = seal.log_end if seal is not None and is_sealed else LogEnd()
        stated = end[0] if end is not None and end[1] else None
        first_place = read_place(self._sealed, Place.START)
        if first_place is not None and not first_place[1]:
            about = _(
                "The row that says after which event the log begins, because older ones were archived, was changed."
            )
            raise _Found(Fault("changed", _("changed start"), about))
        self._start = log_start(self._sealed)
        self._last = max(self._last, self._start)  # older events may have been archived meanwhile
        self.follow(max(known.seq, stated.seq if stated is not None else 0))
        first = self._first(self._rows().filter(seq__lte=self._start.seq))
        if first is not None:
            raise _Found(_inserted(first))
        rest = self._first(self._rows().filter(seq__gt=self._last.seq))
        if stated is None and (end is not None or known.seq or rest is not None):
            raise _Found(
                Fault("changed", _("changed end"), _("The row that says where the log ends was changed or removed."))
            )
        if stated is not None and (stated.seq < known.seq or (rest is not None and self._is_next(rest))):
            raise _Found(_old_end(stated.seq))
        if rest is not None:
            raise _Found(_inserted(rest))
        newer = self._rows().filter(revision__isnull=False, seq__gt=known.seq)
        if is_sealed and newer.exists():  # a change is the last event that the seal after it knows
            raise _Found(_old_end(known.seq))
        if not is_sealed and (seal is not None or self._rows().filter(revision__isnull=False).exists()):
            raise _Found(_unsealed_list(is_missing=seal is None))

    def check_unplaced(self, now: dt.datetime) -> None:
        """Verify the events without a place."""
        oldest: dt.datetime | None = None
        with closing(self._readable(self._rows().filter(seq__isnull=True))) as events:
            for event in events:
                if event.revision is not None or not self._sealed.is_genuine_event(event):
                    raise _Found(_inserted(event))
                oldest = event.at if oldest is None else min(oldest, event.at)
        others = self._rows().filter(revision__isnull=True).order_by()
        copied = others.values("mac").annotate(times=Count("id"), newest=Max("id")).filter(times__gt=1)
        for pk in copied.values_list("newest", flat=True)[:1]:
            copies = others.filter(mac__in=others.filter(pk=pk).values("mac"))
            newest = self._first(copies.order_by(F("seq").desc(nulls_first=True), "-id"))
            if newest is not None:
                raise _Found(_inserted(newest))
        age = (now - oldest).total_seconds() if oldest is not None else 0
        if age > MAX_UNSEALED_SECONDS:
            what = _("unsealed for %(hours)d h") % {"hours": age // 3600}
            about = _("Events wait for their place in the log. Until they have it, they can be removed unnoticed.")
            raise _Found(Fault("unsealed", what, about))

    def _step(self, seq: int, events: list[AuditEvent]) -> None:
        """Verify what has one number."""
        if seq > self._last.seq + 1:
            first, last = self._last.seq + 1, seq - 1
            numbers = str(first) if first == last else f"{first}–{last}"
            about = _("Events were removed from the log.")
            raise _Found(Fault("missing", _("missing %(numbers)s") % {"numbers": numbers}, about))
        good = next((event for event in events if self._is_next(event)), None)
        if good is None:
            about = _("Event %(number)d is not as amesh wrote it.") % {"number": seq}
            raise _Found(Fault("changed", _("changed %(number)d") % {"number": seq}, about))
        if len(events) > 1:
            raise _Found(_inserted(next(event for event in events if event is not good)))
        self._last = LogEnd(seq, good.link)
        self._is_anchored = True
        self.count += 1
        if self._progress is not None and not self.count % _STEP:
            self._progress(self.count)

    def _is_next(self, event: AuditEvent) -> bool:
        """Return True if amesh wrote the event, after the last one."""
        seq = self._last.seq + 1
        if event.seq != seq or not self._sealed.is_genuine_event(event):
            return False
        links = (link_after(keys, self._last.link, seq, event.mac) for keys in self._sealed.all_keys)
        return not self._is_anchored or any(is_same(link, event.link) for link in links)

    def _rows(self) -> QuerySet[AuditEvent]:
        return AuditEvent.objects.using(self._sealed.using).order_by("seq", "id")

    def _first(self, rows: QuerySet[AuditEvent]) -> AuditEvent | None:
        with closing(self._readable(rows)) as events:
            return next(events, None)

    def _readable(self, rows: QuerySet[AuditEvent]) -> Generator[AuditEvent]:
        """Yield rows. One that holds a value that its column cannot hold is a fault.

        To be closed in the transaction in which it began: PostgreSQL closes its cursor with a statement, which would fail in another.
        """
        for pk, event in each_row(rows):
            if event is None:
                raise _Found(_damaged(rows, pk))
            yield event


def _inserted(event: AuditEvent) -> Fault:
    what = _("inserted") if event.seq is None else _("inserted %(number)s") % {"number": event.seq}
    about = _("An event was inserted outside Django: %(kind)s, row %(pk)d, dated %(at)s.")
    return Fault("inserted", what, about % {"kind": clean_line(event.kind), "pk": event.pk, "at": event.at})


def _damaged(rows: QuerySet[AuditEvent], pk: int) -> Fault:
    number: object = None
    with suppress(*UNREADABLE), reading():
        number = rows.filter(pk=pk).values_list("seq", flat=True).first()
    if not isinstance(number, int):
        number = _("event without a place")
    about = _("Row %(pk)d has a value that amesh cannot have written.")
    return Fault("changed", _("changed %(number)s") % {"number": number}, about % {"pk": pk})


def _unsealed_list(*, is_missing: bool) -> Fault:
    about = _(
        "The seal of the allow list says which change of the list was the last. Without it, the newest events may have been removed, "
        "and the row that says where the log ends restored from an older state."
    )
    return Fault("list_seal", _("list seal missing") if is_missing else _("list seal changed"), about)


def _old_end(seq: int) -> Fault:
    about = _("The row that says where the log ends, or the seal of the list, was restored from an older state.")
    return Fault("old_end", _("old end %(number)d") % {"number": seq}, about)
