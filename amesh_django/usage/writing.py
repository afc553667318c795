"""Adding counts to the table, exactly, while other processes add to the same rows."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from django.conf import settings as django_settings
from django.db import connections, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from amesh_django.models import RequestCount
from amesh_django.trust.database import database
from authmesh.protocol.display import clean_line

_T = TypeVar("_T")

HOUR, DAY = RequestCount.Period.HOUR.value, RequestCount.Period.DAY.value

#: Rows that one statement reads or writes. SQLite limits the parameters of a statement.
_BATCH = 500


class Group(NamedTuple):
    """What a process counts.

    Attributes:
        hour: the beginning of the hour, in UTC.
        device_id: the device; empty if it is not in the list, or beyond what is counted by device.
        route: the route of the view, if the requests were accepted.
        reason: why the requests were refused; empty if they were accepted.
    """

    hour: dt.datetime
    device_id: str
    route: str
    reason: str


class Key(NamedTuple):
    """A row of the table. Attributes as in :class:`~amesh_django.models.RequestCount`."""

    period: str
    start: dt.datetime
    device_id: str
    route: str
    reason: str


def as_column(moment: dt.datetime) -> dt.datetime:
    """Return a time as a column holds it: without a time zone if USE_TZ is off."""
    return moment if django_settings.USE_TZ else timezone.make_naive(moment)


def rows_of(counts: Mapping[Group, int]) -> Counter[Key]:
    """Return the rows to which counts are added, and how much."""
    found: Counter[Key] = Counter()
    for (begins, device_id, route, reason), times in counts.items():
        hour, day = as_column(begins), as_column(begins.replace(hour=0))
        route, reason = clean_line(route)[:200], clean_line(reason)[:64]
        if device_id:
            found[Key(HOUR, hour, device_id, route, reason)] += times
            found[Key(DAY, day, device_id, "", reason)] += times
        found[Key(HOUR, hour, "", "", reason)] += times
        found[Key(DAY, day, "", "", reason)] += times
    return found


def add(counts: Mapping[Group, int]) -> None:
    """Add counts to the table, all or none.

    Rows that are missing are inserted first, as zero, by whichever process is the first. Then all rows are locked in one order, which is that
    of their primary keys, those of all devices last, so that two processes never wait for each other.

    Raises:
        django.db.Error: nothing was added.
    """
    using = database()
    rows = RequestCount.objects.using(using)
    times = rows_of(counts)
    pks = _primary_keys(rows, times)
    missing = sorted(times.keys() - pks.keys())
    if missing:
        rows.bulk_create([RequestCount(**key._asdict()) for key in missing], batch_size=_BATCH, ignore_conflicts=True)
        pks |= _primary_keys(rows, missing)
    by_pk = {pks[key]: (key, number) for key, number in times.items() if key in pks}
    with transaction.atomic(using=using):
        for is_total in (False, True):
            chosen = sorted(pk for pk, (key, _number) in by_pk.items() if (not key.device_id) is is_total)
            for batch in _batches(chosen):
                _add(rows, {pk: by_pk[pk][1] for pk in batch})


def _primary_keys(rows: QuerySet[RequestCount], keys: Collection[Key]) -> dict[Key, int]:
    """Return the primary keys of the rows that are there."""
    devices: defaultdict[tuple[str, dt.datetime], set[str]] = defaultdict(set)
    for key in keys:
        devices[key.period, key.start].add(key.device_id)
    found: dict[Key, int] = {}
    for (period, start), names in devices.items():
        for batch in _batches(sorted(names)):
            columns = rows.filter(period=period, start=start, device_id__in=batch).values_list(
                "pk", "device_id", "route", "reason"
            )
            found |= {Key(period, start, name, route, reason): pk for pk, name, route, reason in columns}
    return found


def _add(rows: QuerySet[RequestCount], times: Mapping[int, int]) -> None:
    """Add to rows by their primary keys: rows with the same number in one statement."""
    if connections[rows.db].features.has_select_for_update:
        list(rows.select_for_update().filter(pk__in=list(times)).order_by("pk").values_list("pk", flat=True))
    by_number: defaultdict[int, list[int]] = defaultdict(list)
    for pk, number in times.items():
        by_number[number].append(pk)
    for number, pks in by_number.items():
        rows.filter(pk__in=pks).update(times=F("times") + number)


def _batches(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]
