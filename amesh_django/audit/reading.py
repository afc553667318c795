"""Reading the audit log: events for people and programs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, Final

from django.db.models import Q, Subquery

from amesh_django.models import AuditEvent
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database
from authmesh.protocol.encoding import format_time

#: Kind of an event that was damaged outside Django so that it cannot be read. amesh writes no such event.
UNREADABLE_KIND: Final = "unreadable"


#: Events that wait for their place among which the oldest one that can be read is looked for.
_MAX_WAITING = 100
#: Years of a time that can be shown in any time zone.
_YEARS = range(2, 9999)


def readable(pk: int, event: AuditEvent | None) -> AuditEvent:
    """Return an event; one without a time that stands for it if it was damaged outside Django so that it cannot be shown.

    Args:
        pk: primary key of its row.
        event: the event, or None if it cannot be read.
    """
    if event is not None and event.at.year in _YEARS:
        return event
    return AuditEvent(pk=pk, kind=UNREADABLE_KIND, text=f"Row {pk} was damaged outside Django.")


def events(
    *, since: dt.datetime | None = None, device: str | None = None, kind: str | None = None
) -> Iterator[AuditEvent]:
    """Yield events, the oldest first. They are not verified. One that cannot be shown is :func:`readable` nevertheless.

    Args:
        since: only events from this time on.
        device: only events about the device with this device ID.
        kind: only events of this kind.
    """
    found = AuditEvent.objects.using(database()).order_by("id")
    if since is not None:
        found = found.filter(at__gte=since)
    if device is not None:
        found = found.filter(device_id=device)
    if kind is not None:
        found = found.filter(kind=kind)
    for pk, event in each_row(found):
        yield readable(pk, event)


def beside(key: int, side: str) -> Q:
    """Return the condition that an event comes before or after another one, by time.

    The database compares the times: that of a damaged event cannot be read.

    Args:
        key: primary key of the other event. If there is no such event, no event meets the condition.
        side: ``lt`` for those before it, ``gt`` for those after it.
    """
    moment = Subquery(AuditEvent.objects.using(database()).filter(pk=key).order_by().values("at")[:1])
    return Q(**{f"at__{side}e": moment}) & (Q(**{f"at__{side}": moment}) | Q(**{f"pk__{side}": key}))


def unsealed_seconds(now: dt.datetime) -> float:
    """Return how long the oldest event has waited for its place in the log; 0 if none waits.

    Args:
        now: the time, as Django's ``timezone.now`` returns it.
    """
    waiting = AuditEvent.objects.using(database()).filter(seq__isnull=True).order_by("id")
    oldest = next((event.at for _pk, event in each_row(waiting, _MAX_WAITING) if event is not None), None)
    return max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0


def as_json(event: AuditEvent) -> dict[str, Any]:
    """Return an event for programs: every column but the primary key."""
    return {
        "seq": event.seq,
        "at": format_time(event.at.astimezone(dt.UTC)) if event.kind != UNREADABLE_KIND else None,
        "kind": event.kind,
        "actorType": event.actor_type,
        "actor": event.actor,
        "deviceId": event.device_id,
        "subject": event.subject,
        "address": event.address,
        "reasonCode": event.reason_code,
        "text": event.text,
        "data": data_of(event),
        "revision": event.revision,
        "mac": event.mac,
        "link": event.link,
    }
