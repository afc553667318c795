"""Pages of the log, the newest events first. A page is found by the event beside it, so that the last one costs as much as the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.db.models import QuerySet

from amesh_django.audit.reading import beside, readable
from amesh_django.models import AuditEvent
from amesh_django.trust.damage import each_row

#: Events of a page.
SIZE: Final = 50
_NEWEST_FIRST: Final = ("-at", "-id")
#: Largest primary key.
_MAX_KEY: Final = 2**63


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the log.

    Attributes:
        events: the events, the newest first. One that was damaged is readable nevertheless.
        newer: parameter and value of the page before, or None if this is the first.
        older: the same of the page after, or None if this is the last.
    """

    events: list[AuditEvent]
    newer: tuple[str, int] | None
    older: tuple[str, int] | None


def page(rows: QuerySet[AuditEvent], given: Mapping[str, str]) -> Page:
    """Return a page. Takes two queries.

    Args:
        rows: the events to choose from, in no order.
        given: the parameters of the request: ``before`` or ``after`` with the primary key of an event, or neither for the first page.
    """
    before, after = _key(given.get("before", "")), _key(given.get("after", ""))
    if after is not None:
        found = _read(rows.filter(beside(after, "gt")).order_by("at", "id"))
        events, has_newer, has_older = found[:SIZE][::-1], len(found) > SIZE, True
    else:
        older_ones = rows.filter(beside(before, "lt")) if before is not None else rows
        found = _read(older_ones.order_by(*_NEWEST_FIRST))
        events, has_newer, has_older = found[:SIZE], before is not None, len(found) > SIZE
    if not events:
        return Page([], None, None)
    newer = ("after", events[0].pk) if has_newer else None
    return Page(events, newer, ("before", events[-1].pk) if has_older else None)


def _read(rows: QuerySet[AuditEvent]) -> list[AuditEvent]:
    return [readable(pk, event) for pk, event in each_row(rows, SIZE + 1)]


def _key(text: str) -> int | None:
    found = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
    return found if found is not None and found < _MAX_KEY else None
