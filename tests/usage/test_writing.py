"""Rows of counts: several processes add to the same ones, and nothing is lost."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections import Counter
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from amesh_django.models import RequestCount
from amesh_django.usage import pruning, writing
from amesh_django.usage.writing import Group
from tests.support import fork_server
from tests.support.databases import environment

HOUR = dt.datetime(2026, 3, 28, 10, tzinfo=dt.UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each backend in turn."""
    chosen: dict[str, str] = request.getfixturevalue(f"{request.param}_database")
    return chosen


@pytest.mark.process
@pytest.mark.slow
def test_processes_that_write_at_once_add_up_exactly(counted: None, default_database: dict[str, str]) -> None:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **environment(default_database)}
    processes = [
        fork_server.start([sys.executable, "-m", "tests.usage.worker", str(seed), "10"], env=env) for seed in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found: Counter[tuple[str, str, str]] = Counter()
    for row in RequestCount.objects.all():
        found[row.period, row.device_id, row.reason] += row.times
    names = [f"am_{number:016d}" for number in range(40)]
    for period in ("hour", "day"):
        assert all(found[period, name, ""] == 4 * 10 * 3 for name in names)
        assert found[period, "", ""] == 4 * 10 * 3 * 40
        assert found[period, "", "unknown_device"] == 4 * 10
        assert found[period, "", "last"] == 4


def test_a_thousand_groups_need_few_statements(counted: None) -> None:
    groups = {Group(HOUR, f"am_{number}", "orders/", ""): 1 + number % 3 for number in range(1000)}
    found = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as statements:
            writing.add(groups)
        found.append(len(statements))
    assert found[0] <= 120 and found[1] <= 40  # the first inserts the rows
    assert {row.times for row in RequestCount.objects.filter(device_id="")} == {2 * sum(groups.values())}


def test_hours_are_kept_for_three_days_and_days_for_400(counted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "MAX_ROWS", 4)
    now = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
    for days, period in [
        (2.9, "hour"),
        (3.1, "hour"),
        (9, "hour"),
        (9, "day"),
        (399, "day"),
        (401, "day"),
        (500, "day"),
    ]:
        for name in ("", "am_x"):
            RequestCount.objects.create(period=period, start=now - dt.timedelta(days=days), device_id=name, times=1)
    assert [pruning.prune(now) for _ in range(3)] == [4, 4, 0]
    left = [(row.period, (now - row.start).days) for row in RequestCount.objects.filter(device_id="am_x")]
    assert sorted(left) == [("day", 9), ("day", 399), ("hour", 2)]
    pruning.prune_sometimes(now)
    RequestCount.objects.create(period="hour", start=now - dt.timedelta(days=9), times=1)
    pruning.prune_sometimes(now)
    assert RequestCount.objects.filter(start__lt=now - dt.timedelta(days=8), period="hour").exists()  # not so soon


def test_what_the_sweeper_and_a_process_that_writes_delete(counted: None, settings: Any) -> None:
    from amesh_django.fleet import sweeping
    from amesh_django.usage import counting

    def old() -> None:
        RequestCount.objects.create(period="hour", start=HOUR - dt.timedelta(days=900), times=1)
        pruning.reset()

    old()
    sweeping.sweep(ring=lambda pk: None)
    assert not RequestCount.objects.exists()
    old()
    counting._counts.count("", "", "missing_header")
    counting.flush_after_request()
    assert not RequestCount.objects.filter(start__lt=HOUR).exists()
