"""What pages and programs read of the counts."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from amesh_django.models import RequestCount
from amesh_django.usage import reading, writing
from amesh_django.usage.reading import Day, Totals
from amesh_django.usage.writing import Group

NOW = dt.datetime(2026, 3, 28, 10, 40, tzinfo=dt.UTC)
HOUR = NOW.replace(minute=0)
A, B = "am_a", "am_b"

pytestmark = pytest.mark.usefixtures("counted")


def ago(**options: int) -> dt.datetime:
    return HOUR - dt.timedelta(**options)


@pytest.fixture
def some() -> None:
    writing.add(
        {
            Group(HOUR, A, "orders/", ""): 5,
            Group(ago(hours=3), A, "orders/", ""): 2,
            Group(ago(hours=24), A, "stock/", ""): 9,
            Group(ago(hours=25), A, "old/", ""): 1,
            Group(HOUR, A, "", ""): 1,
            Group(HOUR, A, "", "replay_detected"): 3,
            Group(HOUR, B, "orders/", ""): 100,
            Group(HOUR, "", "", "unknown_device"): 50,
            Group(ago(days=29), A, "orders/", ""): 7,
            Group(ago(days=29), A, "", "device_revoked"): 4,
            Group(ago(days=30), A, "orders/", ""): 1000,
        }
    )


def test_by_day(some: None) -> None:
    found = reading.by_day(A, now=NOW)
    assert len(found) == 30
    assert found[0] == Day(dt.date(2026, 2, 27), 7, 4)
    assert found[-2:] == [Day(dt.date(2026, 3, 27), 10, 0), Day(dt.date(2026, 3, 28), 8, 3)]
    assert not any(day.accepted or day.refused for day in found[1:-2])
    assert reading.by_day(days=1, now=NOW) == [Day(dt.date(2026, 3, 28), 108, 53)]
    assert reading.by_day("am_none", 2, now=NOW) == [Day(dt.date(2026, 3, 27)), Day(dt.date(2026, 3, 28))]


def test_routes(some: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reading.routes(A, now=NOW) == [("stock/", 9), ("orders/", 7), ("", 1)]
    assert reading.routes(A, hours=2, now=NOW) == [("orders/", 5), ("", 1)]
    monkeypatch.setattr(reading, "MAX_ROUTES", 1)
    assert reading.routes(A, now=NOW) == [("stock/", 9), ("", 8)]
    assert reading.routes("am_none", now=NOW) == []


def test_refusals_and_totals(some: None) -> None:
    assert reading.refusals(A, now=NOW) == [("replay_detected", 3)]
    assert reading.refusals(A, days=30, now=NOW) == [("device_revoked", 4), ("replay_detected", 3)]
    assert reading.refusals(now=NOW) == [("unknown_device", 50), ("replay_detected", 3)]
    assert reading.totals(now=NOW) == Totals(117, [("unknown_device", 50), ("replay_detected", 3)])
    assert reading.totals(hours=2, now=NOW).accepted == 106


def test_each_is_one_query_over_an_index(some: None, django_assert_num_queries: Any) -> None:
    for read in (
        lambda: reading.by_day(A, now=NOW),
        lambda: reading.by_day(now=NOW),
        lambda: reading.routes(A, now=NOW),
        lambda: reading.refusals(now=NOW),
        lambda: reading.refusals(A, days=30, now=NOW),
        lambda: reading.totals(now=NOW),
    ):
        with django_assert_num_queries(1):
            read()


def test_without_time_zones(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "America/New_York"
    now = timezone.now()
    hour = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    for _ in range(2):
        writing.add({Group(hour, A, "orders/", ""): 2})
    assert reading.by_day(A, 1, now=now) == [Day(hour.date(), 4)]
    assert reading.routes(A) == [("orders/", 4)]
    assert reading.totals().accepted == 4


@pytest.mark.parametrize("damage", ["times = 'x'", "start = 'x'", "route = x'ff'", "reason = CAST(x'ff' AS TEXT)"])
def test_a_damaged_row_is_left_out(some: None, damage: str) -> None:
    pk = RequestCount.objects.get(device_id=A, route="orders/", start=ago(hours=3)).pk
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE amesh_requestcount SET {damage} WHERE id = {pk}")  # noqa: S608
    if damage.startswith("start"):  # SQLite compares texts
        assert reading.routes(A, now=NOW) == [("stock/", 9), ("orders/", 5), ("", 1)]
    else:
        assert dict(reading.routes(A, now=NOW))["orders/"] == 5
