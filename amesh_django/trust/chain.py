"""The audit log: how an event is hashed and linked to the one before, and how it is appended under a lock (design.md, decision 13)."""

from __future__ import annotations

import datetime as dt
import hmac
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.models import Max, QuerySet
from django.utils import timezone

from amesh_django.models import AuditEvent, AuditSeal, Device
from amesh_django.signals import EVENT_SIGNALS, list_changed
from authmesh.protocol.display import clean_line
from authmesh.protocol.multiset import encode_row

from .damage import UNREADABLE, each_row, reading
from .database import MAX_COUNTED, insert_rows
from .keys import SealKeys
from .sealing import (
    BATCH_SIZE,
    COLUMNS,
    FIRST_COLUMNS,
    LogEnd,
    SealedRows,
    SealRow,
    actor,
    row_texts,
    storable,
)

logger = logging.getLogger("amesh_django.audit")

#: Columns under the MAC of an event, in the order in which they are hashed. Its place in the log is not: that is under the link.
EVENT_COLUMNS = (
    "at",
    "kind",
    "actor_type",
    "actor",
    "device_id",
    "subject",
    "address",
    "reason_code",
    "text",
    "data",
    "revision",
)


#: Depth to which objects and lists of an event are nested at most.
_MAX_DEPTH = 20
#: Events after the end of the log whose numbers are skipped if that end was damaged. Higher numbers were forged, too.
_MAX_GAP = 10**9


class Actor(str):
    """The name of who does something, and what that is.

    Attributes:
        type: ``user``, ``command``, ``token``, ``device``, ``system``, or ``code`` for a plain text.
    """

    type: str

    def __new__(cls, name: str, type: str = "code") -> Actor:
        found = super().__new__(cls, name)
        found.type = type
        return found


def new_event(
    keys: SealKeys,
    kind: str,
    *,
    by: str = "",
    revision: int | None = None,
    device_id: str = "",
    subject: str = "",
    address: str = "",
    reason_code: str = "",
    text: str = "",
    data: Mapping[str, Any] | None = None,
    at: dt.datetime | None = None,
) -> AuditEvent:
    """Return an event with its MAC, not saved. Texts are made storable.

    Args:
        keys: keys of the seal of the list.
        kind: one of ``AuditEvent.Kind``.
        by: who did it. An :class:`Actor` says what that is.
        revision: revision of the list after a change of it; None for any other event.
        device_id: the device that it is about.
        subject: name of what it is about.
        address: address or network of the client.
        reason_code: stable word for the reason.
        text: reason in words.
        data: what else is known, with values that JSON has.
        at: time. Defaults to now.
    """
    event = AuditEvent(
        at=at or timezone.now(),
        kind=kind,
        actor_type=by.type if isinstance(by, Actor) else "code" if by else "",
        actor=actor(by),
        device_id=storable(device_id)[:32],
        subject=storable(subject),
        address=storable(address)[:64],
        reason_code=storable(reason_code)[:64],
        text=storable(text),
        data=json.dumps(data or {}, ensure_ascii=True),
        revision=revision,
    )
    event.mac = event_mac(keys, event)
    return event


def event_mac(keys: SealKeys, event: AuditEvent) -> str:
    """Return the HMAC-SHA256, in hex, over every column of an event but its place in the log."""
    columns = row_texts([getattr(event, name) for name in EVENT_COLUMNS])
    return hmac.digest(keys.audit, encode_row("amesh-audit-event-v1", keys.owner, *columns), "sha256").hex()


def link_after(keys: SealKeys, before: str, seq: int, mac: str) -> str:
    """Return the link of an event, in hex: an HMAC-SHA256 over the link of the event before, its number, and its MAC."""
    message = encode_row("amesh-audit-link-v1", keys.owner, before, str(seq), mac)
    return hmac.digest(keys.chain, message, "sha256").hex()


def end_mac(keys: SealKeys, end: LogEnd) -> str:
    """Return the HMAC-SHA256, in hex, over the row that says where the log ends."""
    message = encode_row("amesh-audit-end-v1", keys.owner, str(end.seq), end.link)
    return hmac.digest(keys.chain, message, "sha256").hex()


def is_same(one: str, other: Any) -> bool:
    """Return True if two MACs are equal. Takes constant time."""
    return hmac.compare_digest(one.encode(), str(other).encode("utf-8", "replace"))


def data_of(event: AuditEvent) -> dict[str, Any]:
    """Return what an event stores as JSON; nothing if it was damaged outside Django, which its MAC shows."""
    try:
        found = json.loads(event.data)
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) and not _is_deep(found) else {}


def _is_deep(value: Any) -> bool:
    """Return True if a value is nested more deeply than amesh writes it, so that it might not be written as JSON again."""
    level = [value]
    for _depth in range(_MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for values in inner for one in values]
    return bool(level)


def texts_of(values: Sequence[Any]) -> dict[str, str]:
    """Return a device row as an event stores it: column → text. Columns of later versions than the first are left out if empty.

    Args:
        values: in the order of :data:`~amesh_django.trust.sealing.COLUMNS`.
    """
    texts = zip(COLUMNS, row_texts(values), strict=True)
    return {name: text for name, text in texts if text or name in FIRST_COLUMNS}


def device_of(texts: Mapping[str, str]) -> Device:
    """Return a row from its texts in the audit log, not saved."""
    device = Device()
    for name in COLUMNS:
        field: Any = Device._meta.get_field(name.removesuffix("_id") if name == "user_id" else name)
        is_null = field.null
        field = getattr(field, "target_field", field)
        text = texts.get(name, "")  # columns of later versions are left out if they are empty
        setattr(device, name, None if not text and is_null else field.to_python(text))
    return device


class ChainedRows(SealedRows):
    """Adds the audit log: a chain of events, each linked to the one before, and the row that says where it ends."""

    def changes(self, *conditions: Any, **more: Any) -> QuerySet[AuditEvent]:
        """Return the changes of the list that have a place in the log, or those that meet conditions, the oldest first.

        The revision of an event is under its MAC, and its primary key is not, so a copy of an old event does not become the newest.
        """
        found = AuditEvent.objects.using(self.using).filter(
            *conditions, **more, revision__isnull=False, seq__isnull=False
        )
        return found.order_by("revision", "seq", "id")

    def events(self, *conditions: Any, **more: Any) -> Iterator[AuditEvent | None]:
        """Yield the events of :meth:`changes`; None for one that was damaged so that it cannot be read."""
        for _pk, event in each_row(self.changes(*conditions, **more)):
            yield event

    def is_genuine_event(self, event: AuditEvent) -> bool:
        """Return True if amesh wrote the event, with one of our keys. Takes constant time for each."""
        try:
            return any(is_same(event_mac(keys, event), event.mac) for keys in self.all_keys)
        except UNREADABLE:  # a value that amesh cannot have written
            return False

    def lost_seal(self, row: SealRow | None) -> dict[str, str]:
        """Return what an event says about a seal that does not tell where the log ended; nothing if the seal is genuine.

        The log goes on after its own end then, which may be an older one that was restored: only the event shows that.
        """
        if row is not None and self.is_genuine(row):
            return {}
        return {"seal": "missing" if row is None else "changed"}

    def log_keys(self) -> SealKeys:
        """Return the keys with which an event is written that is not a change: those of the seal of the list, which all processes know."""
        return self.under(self.read_seal()).keys if len(self.all_keys) > 1 else self.keys

    def read_end(self) -> tuple[LogEnd, bool] | None:
        """Return the row that says where the log ends, and True if amesh wrote it; None if there is no such row."""
        return self._checked(self._ends())

    def lock_end(self) -> tuple[LogEnd, bool] | None:
        """Return what :meth:`read_end` does, locked for the rest of the transaction.

        A transaction that locks the seal of the list, too, locks that first.
        """
        if connections[self.using].features.has_select_for_update:
            return self._checked(self._ends().select_for_update())
        self._ends().update(id=1)  # a write is what locks an SQLite database
        return self.read_end()

    def lock_log(self, keys: SealKeys, known: LogEnd) -> LogEnd:
        """Lock the end of the log for a change of the list, and return after which place its events come.

        If the row with the end was damaged or removed outside Django, they come after all others, with a gap before them: a damaged log
        stops no change, but the damage stays visible. Call it while the seal of the list is locked.

        Args:
            keys: keys of the seal of the list.
            known: end of the log that the seal binds.
        """
        found = self._locked_end()
        if found is None:
            self.make_end(keys)
            found = self._locked_end() if not known.seq else None
        if found is not None and found[1] and (found[0] == known or found[0].seq > known.seq):
            return found[0]
        events = AuditEvent.objects.using(self.using).filter(seq__gte=0, seq__lt=MAX_COUNTED)
        highest = int(events.aggregate(found=Max("seq"))["found"] or 0)
        logger.critical(
            "The end of the audit log was changed or removed outside Django. To see what is wrong with the log, run: manage.py "
            "amesh_audit --verify"
        )
        return LogEnd(max(min(highest, known.seq + _MAX_GAP), known.seq) + 1)

    def append(self, keys: SealKeys, events: Sequence[AuditEvent], end: LogEnd) -> LogEnd:
        """Save new events after the end of the log, and return the end after them, which :meth:`write_end` must write.

        Args:
            keys: keys of the seal of the list.
            events: in their order.
            end: from :meth:`lock_log`.
        """
        for event in events:
            place(keys, event, end)
            end = LogEnd(event.seq or 0, event.link)
        save_events(self.using, events)
        transaction.on_commit(lambda: announce(events), using=self.using, robust=True)
        return end

    def extend(self, keys: SealKeys, events: Sequence[AuditEvent], known: LogEnd) -> LogEnd:
        """Lock the end of the log, save events after it, and write the new end, which is returned.

        Args:
            keys: keys of the seal of the list.
            events: in their order.
            known: end of the log that the seal binds.
        """
        end = self.append(keys, events, self.lock_log(keys, known))
        self.write_end(keys, end)
        return end

    def begin(self, keys: SealKeys, row: SealRow) -> list[AuditEvent]:
        """Return the event that goes before the first one of a list that is older than its audit log: one of version 0.1.

        Args:
            keys: keys of the seal of the list.
            row: the seal before the change.
        """
        if row.audit_seq or not row.count:
            return []
        kind = AuditEvent.Kind.BEGIN
        return [new_event(keys, kind, revision=row.revision, by=Actor("amesh", "system"), data={"devices": row.count})]

    def write_end(self, keys: SealKeys, end: LogEnd) -> None:
        """Write where the log ends. Call it while that row is locked."""
        self._ends().update(seq=end.seq, link=end.link, mac=end_mac(keys, end))

    def make_end(self, keys: SealKeys) -> None:
        """Begin an empty log, unless another process does so just now."""
        try:
            with transaction.atomic(using=self.using):
                AuditSeal.objects.using(self.using).create(id=1, seq=0, link="", mac=end_mac(keys, LogEnd()))
        except IntegrityError:
            pass

    def _locked_end(self) -> tuple[LogEnd, bool] | None:
        """Return the end for a transaction that has locked the seal: on SQLite, that has locked the whole database."""
        has_locks = connections[self.using].features.has_select_for_update
        return self.lock_end() if has_locks else self.read_end()

    def _ends(self) -> QuerySet[AuditSeal]:
        return AuditSeal.objects.using(self.using).filter(pk=1)

    def _checked(self, ends: QuerySet[AuditSeal]) -> tuple[LogEnd, bool] | None:
        try:
            with reading():
                for seq, link, mac in list(ends.values_list("seq", "link", "mac")):
                    end = LogEnd(seq, link)
                    is_ours = isinstance(seq, int) and any(is_same(end_mac(keys, end), mac) for keys in self.all_keys)
                    return end, is_ours
        except UNREADABLE:
            return LogEnd(), False
        return None


def save_events(using: str, events: Sequence[AuditEvent]) -> None:
    """Insert events, all or none.

    Args:
        using: database alias.
        events: the events, not saved.
    """
    insert_rows(AuditEvent.objects.using(using), events, BATCH_SIZE)


def announce(events: Sequence[AuditEvent]) -> None:
    """Tell the logger ``amesh_django.audit`` and the receivers of the signals about events that are committed.

    Args:
        events: the events, in their order.
    """
    for event in events:
        logger.info(
            "%s %s by %s",
            event.kind,
            clean_line(event.device_id or event.subject),
            clean_line(event.actor) or "unknown",
            extra={
                "event": event.kind,
                "device_id": event.device_id or None,
                "device_name": event.subject or None,
                "actor": event.actor,
                "actor_type": event.actor_type,
                "reason": event.reason_code,
                "detail": event.text,
                "address": event.address,
                "revision": event.revision,
                "seq": event.seq,
                "mac": event.mac,
                # For an auditor without the secret of the seal, who must not depend on the database.
                **({"checkpoint": data_of(event)} if event.kind == AuditEvent.Kind.CHECKPOINT else {}),
            },
        )
        signal = EVENT_SIGNALS.get(event.kind)
        if signal is not None:
            signal.send_robust(
                sender=None,
                event=event,
                device_id=event.device_id,
                name=event.subject,
                by=event.actor,
                reason=event.text,
            )
    if any(event.revision is not None for event in events):
        list_changed.send_robust(sender=None, events=list(events))


def place(keys: SealKeys, event: AuditEvent, end: LogEnd) -> None:
    """Give an event its place after the end of the log. It is not saved."""
    event.seq = end.seq + 1
    event.link = link_after(keys, end.link, event.seq, event.mac)
