"""Reading the counts, for pages and programs. Each function is one query over some hundred rows at most. Days and hours are in UTC.

The counts are not sealed. A row that was damaged outside Django so that it cannot be read is left out.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.utils import timezone

from amesh_django.models import RequestCount
from amesh_django.trust.damage import UNREADABLE, each_row, has_types, reading
from amesh_django.trust.database import database

from .writing import DAY, HOUR, as_column

#: Routes that :func:`routes` returns by name.
MAX_ROUTES = 20


@dataclass(frozen=True, slots=True)
class Day:
    """The requests of one day.

    Attributes:
        date: the day, in UTC.
        accepted: number of requests that were accepted.
        refused: number of requests that were refused.
    """

    date: dt.date
    accepted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """The requests of all devices.

    Attributes:
        accepted: number of requests that were accepted.
        refused: reason, as in the log, and number of requests; most first.
    """

    accepted: int = 0
    refused: list[tuple[str, int]] = field(default_factory=list)


def by_day(device_id: str = "", days: int = 30, *, now: dt.datetime | None = None) -> list[Day]:
    """Return the requests of the last days, today included: one for each day, the oldest first.

    Args:
        device_id: a device. Defaults to all devices, and requests of unknown ones.
        days: number of days.
        now: the time, as Django's ``timezone.now`` returns it. Defaults to that.
    """
    first = _first_day(days, now)
    accepted: Counter[dt.date] = Counter()
    refused: Counter[dt.date] = Counter()
    for row in _rows(DAY, device_id, first):
        counter = refused if row.reason else accepted
        counter[row.start.astimezone(dt.UTC).date()] += row.times
    dates = [(first + dt.timedelta(days=number)).date() for number in range(days)]
    return [Day(date, accepted[date], refused[date]) for date in dates]


def routes(device_id: str, *, hours: int = 24, now: dt.datetime | None = None) -> list[tuple[str, int]]:
    """Return route and number of the accepted requests of a device; most first.

    At most :data:`MAX_ROUTES` routes have a name. The rest, and requests for which there is no view, have an empty text, last.

    Args:
        device_id: a device.
        hours: number of hours. The hour in which they begin counts as a whole.
        now: as for :func:`by_day`.
    """
    found: Counter[str] = Counter()
    for row in _rows(HOUR, device_id, _first_hour(hours, now)):
        if not row.reason:
            found[row.route] += row.times
    rest = found.pop("", 0)
    named = _most_first(found)
    rest += sum(times for _route, times in named[MAX_ROUTES:])
    return named[:MAX_ROUTES] + ([("", rest)] if rest else [])


def refusals(
    device_id: str = "", *, hours: int = 24, days: int | None = None, now: dt.datetime | None = None
) -> list[tuple[str, int]]:
    """Return reason, as in the log, and number of the refused requests; most first.

    Args:
        device_id: as for :func:`by_day`.
        hours: number of hours, as for :func:`routes`.
        days: number of days, today included, instead of *hours*.
        now: as for :func:`by_day`.
    """
    if days is not None:
        return _refused(_rows(DAY, device_id, _first_day(days, now)))
    return _refused(_rows(HOUR, device_id, _first_hour(hours, now)))


def totals(*, hours: int = 24, now: dt.datetime | None = None) -> Totals:
    """Return the requests of all devices.

    Args:
        hours: number of hours, as for :func:`routes`.
        now: as for :func:`by_day`.
    """
    rows = list(_rows(HOUR, "", _first_hour(hours, now)))
    return Totals(sum(row.times for row in rows if not row.reason), _refused(rows))


def _first_day(days: int, now: dt.datetime | None) -> dt.datetime:
    today = (now or timezone.now()).astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - dt.timedelta(days=days - 1)


def _first_hour(hours: int, now: dt.datetime | None) -> dt.datetime:
    begins = (now or timezone.now()).astimezone(dt.UTC) - dt.timedelta(hours=hours)
    return begins.replace(minute=0, second=0, microsecond=0)


def _rows(period: str, device_id: str, first: dt.datetime) -> list[RequestCount]:
    rows = RequestCount.objects.using(database()).filter(
        period=period, device_id=device_id, start__gte=as_column(first)
    )
    try:
        with reading():
            return [row for row in rows if has_types(RequestCount, row.__dict__)]
    except UNREADABLE:
        return [row for _pk, row in each_row(rows) if row is not None]


def _refused(rows: Iterable[RequestCount]) -> list[tuple[str, int]]:
    found: Counter[str] = Counter()
    for row in rows:
        if row.reason:
            found[row.reason] += row.times
    return _most_first(found)


def _most_first(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
