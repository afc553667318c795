"""Counting requests: which, under what, and that it costs no request anything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.signals import request_finished
from django.db import OperationalError, ProgrammingError, connection
from django.db.models import QuerySet
from django.test import Client

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import DeviceActivity, RequestCount
from amesh_django.signals import request_refused, request_routed
from amesh_django.test import AmeshAsyncClient, AmeshClient, EphemeralDevice
from amesh_django.usage import counting, writing
from amesh_django.usage.counting import MAX_GROUPS, OTHER, Counts
from amesh_django.usage.writing import Group
from amesh_django.verification import activity
from authmesh.protocol.errors import TimestampOutOfRange, Unauthorized

MIDDLEWARE = ["amesh_django.middleware.AmeshMiddleware"]
Rows = Callable[[], dict[tuple[str, str, str, str], int]]


def both(device: str, route: str, times: int) -> dict[tuple[str, str, str, str], int]:
    """The rows of accepted requests of one device and one route, if there were no others."""
    return {
        ("hour", device, route, ""): times,
        ("day", device, "", ""): times,
        ("hour", "", "", ""): times,
        ("day", "", "", ""): times,
    }


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/orders/7/", "orders/<int:number>/"),
        ("/api/async/secret/", "api/async/<str:secret>/"),
        ("/fails/", "fails/"),
        ("/nothing/", ""),
        ("/rest/7/", "rest/<int:number>/"),
        ("/decorated/", "decorated/"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_request_is_counted_once_under_the_route_of_its_view(
    laptop: EphemeralDevice, rows: Rows, settings: Any, path: str, route: str, is_async: bool
) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    name = laptop.identity.device_id
    if is_async:
        async_client = AmeshAsyncClient(laptop, raise_request_exception=False)
        for _ in range(2):
            async_to_sync(async_client.get)(path)
    else:
        client = AmeshClient(laptop, raise_request_exception=False)
        for _ in range(2):
            client.get(path)
    assert rows() == both(name, route, 2)


@pytest.mark.parametrize("path", ["decorated/", "decorated-async/", "rest/7/"])
def test_without_the_middleware(laptop: EphemeralDevice, rows: Rows, path: str) -> None:
    assert AmeshClient(laptop).get(f"/{path}").status_code == 200
    assert rows() == both(laptop.identity.device_id, path.replace("7", "<int:number>"), 1)


@pytest.mark.parametrize("with_middleware", [False, True])
@pytest.mark.parametrize(("path", "reason"), [("/write/", "insufficient_scope"), ("/users/7/", "user_required")])
def test_a_request_that_is_refused_after_its_signature_was_accepted_counts_as_refused(
    laptop: EphemeralDevice, rows: Rows, settings: Any, path: str, reason: str, with_middleware: bool
) -> None:
    settings.MIDDLEWARE = MIDDLEWARE if with_middleware else []
    assert AmeshClient(laptop).get(path).status_code == 403
    name = laptop.identity.device_id
    keys = [("hour", name), ("day", name), ("hour", ""), ("day", "")]
    assert rows() == {(period, device, "", reason): 1 for period, device in keys}
    activity.flush()
    assert DeviceActivity.objects.exists()  # the device was here


def test_scopes_of_the_middleware(laptop: EphemeralDevice, rows: Rows, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.AMESH = {**settings.AMESH, "PROTECT": [("/orders/", ["orders:write"])]}
    assert AmeshClient(laptop).get("/orders/7/").status_code == 403
    assert {reason for _period, _device, _route, reason in rows()} == {"insufficient_scope"}


def test_a_device_that_is_not_in_the_list_has_no_row(laptop: EphemeralDevice, rows: Rows) -> None:
    for _ in range(3):
        AmeshClient(EphemeralDevice("stranger")).get("/decorated/")
    Client().get("/decorated/")
    DatabaseAllowList(by="alice").revoke(laptop.identity.device_id)
    AmeshClient(laptop).get("/decorated/")
    name = laptop.identity.device_id
    assert rows() == {
        ("hour", "", "", "unknown_device"): 3,
        ("day", "", "", "unknown_device"): 3,
        ("hour", "", "", "missing_header"): 1,
        ("day", "", "", "missing_header"): 1,
        ("hour", name, "", "device_revoked"): 1,
        ("day", name, "", "device_revoked"): 1,
        ("hour", "", "", "device_revoked"): 1,
        ("day", "", "", "device_revoked"): 1,
    }


@pytest.mark.slow
def test_a_hundred_thousand_devices_that_are_not_in_the_list_have_no_row(counted: None, rows: Rows) -> None:
    for number in range(100_000):
        counting.on_refused(error=Unauthorized(reason="unknown_device", device_id=f"am_{number}"))
    counting.on_refused(error=TimestampOutOfRange(device_id="am_of_a_machine_that_enrolls"))
    assert len(counting._counts._pending) == 2
    assert rows() == {
        (period, "", "", reason): times
        for period in ("hour", "day")
        for reason, times in {"unknown_device": 100_000, "timestamp_out_of_range": 1}.items()
    }


def test_what_is_noted_of_the_last_request(laptop: EphemeralDevice, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    client = AmeshClient(laptop)
    client.get("/orders/7/?token=secret", REMOTE_ADDR="2001:db8::7", HTTP_USER_AGENT="amesh/0.1\n\x00" + "x" * 200)
    activity.flush()
    row = DeviceActivity.objects.get()
    assert (row.address, row.route) == ("2001:db8::7", "orders/<int:number>/")
    assert row.client == "amesh/0.1 " + "x" * 90
    activity.reset()
    client.get("/decorated/", REMOTE_ADDR="192.0.2.7", headers={"User-Agent": "curl"})
    activity.flush()
    row.refresh_from_db()
    assert (row.address, row.route, row.client) == ("192.0.2.7", "decorated/", "curl")


def test_turned_off(laptop: EphemeralDevice, settings: Any) -> None:
    assert request_routed.has_listeners() and request_refused.has_listeners()
    settings.AMESH = {**settings.AMESH, "COUNT_REQUESTS": False}
    assert not request_routed.has_listeners()
    AmeshClient(laptop).get("/decorated/")
    Client().get("/decorated/")
    counting._counts.flush()
    assert not RequestCount.objects.exists()


def test_counts_are_written_after_a_request_every_ten_seconds(laptop: EphemeralDevice, clock: Clock) -> None:
    client = AmeshClient(laptop)

    def total() -> int:
        return sum(row.times for row in RequestCount.objects.filter(period="day", device_id=""))

    found = []
    for seconds in (0, 5, 4.9, 0.2, 0, 10):
        clock.now += seconds
        client.get("/decorated/")
        found.append(total())
    assert found == [1, 1, 1, 4, 4, 6]
    request_finished.send(sender=None)
    assert total() == 6


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(counted: None, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(counting, "_counts", Counts(writing.add, found))
    return found


@pytest.mark.parametrize("error", [OperationalError, ProgrammingError])
def test_a_database_that_is_down_costs_no_request(
    laptop: EphemeralDevice,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    """If it is down, the requests are counted when it is up again. What it rejects is dropped."""
    client = AmeshClient(laptop)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "amesh_django.usage"]

    with monkeypatch.context() as patch:

        def down(*arguments: Any, **options: Any) -> Any:
            raise error("down, with a secret")

        patch.setattr(QuerySet, "update", down)
        assert client.get("/decorated/").status_code == 200
        assert client.get("/decorated/").status_code == 200
        assert told() == [f"Counted requests could not be written: {error.__name__}"]  # not at each request
    clock.now += 10
    client.get("/decorated/")
    expected = 3 if error is OperationalError else 2
    assert {row.times for row in RequestCount.objects.all()} == {expected}


def test_counting_that_fails_costs_no_request(laptop: EphemeralDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Counts, "count", fail)
    assert AmeshClient(laptop).get("/decorated/").status_code == 200
    assert Client().get("/decorated/").status_code == 400
    monkeypatch.setattr(Counts, "is_due", True)
    monkeypatch.setattr(Counts, "flush", fail)
    assert AmeshClient(laptop).get("/decorated/").status_code == 200


def test_counts_that_were_written_leave_no_connection_that_is_too_old(counted: None) -> None:
    """Django's own receiver of `request_finished` has run before."""
    counting._counts.count("", "", "missing_header")
    connection.ensure_connection()
    connection.close_at = 0.0  # until it is opened again
    counting.flush_after_request()
    assert connection.connection is None
    assert RequestCount.objects.exists()


def test_any_number_of_groups_needs_little_memory_and_no_request_is_lost() -> None:
    clock, written = Clock(), Counter[Group]()
    counts = Counts(written.update, clock, lambda: 3_600_000.0)
    counts.flush()
    for number in range(10_000):
        counts.count(f"am_{number}", "orders/", "")
        counts.count(f"am_{number}", "", f"reason {number}")
    assert len(counts._pending) <= 2 * MAX_GROUPS + 2
    assert not counts.is_due
    clock.now += counting.FULL_SECONDS
    assert counts.is_due
    counts.flush()
    assert sum(written.values()) == 20_000
    assert {group.reason for group in written if not group.device_id} >= {"", OTHER}
    assert sum(times for group, times in written.items() if not group.reason) == 10_000


def test_full_counts_are_not_written_at_each_request_while_the_database_is_down() -> None:
    def down(counts: Counter[Group]) -> None:
        raise OperationalError

    clock = Clock()
    counts = Counts(down, clock)
    for number in range(2 * MAX_GROUPS):
        counts.count(f"am_{number}", "", "")
    with pytest.raises(OperationalError):
        counts.flush()
    clock.now += 5
    counts.count("am_new", "", "")
    assert not counts.is_due
    clock.now += 5
    assert counts.is_due
    with pytest.raises(OperationalError):
        counts.flush()
    assert sum(counts._pending.values()) == 2 * MAX_GROUPS + 1


@pytest.mark.process
def test_a_forked_child_counts_for_itself(counted: None) -> None:
    counting._counts.count("", "", "missing_header")
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, str(len(counting._counts._pending)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0"
    os.close(reader)
    os.close(writer)
    assert len(counting._counts._pending) == 1


def test_at_its_end_a_process_writes_only_to_the_database_it_has_written_to(
    counted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test runner of a project has given its database back by then."""
    counting._counts.count("", "", "missing_header")
    counting.flush_at_exit()
    assert not RequestCount.objects.exists()
    counting.flush_after_request()
    counting._counts.count("", "", "missing_header")
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", "another")
        counting.flush_at_exit()
    assert {row.times for row in RequestCount.objects.all()} == {1}
    counting.flush_at_exit()
    assert {row.times for row in RequestCount.objects.all()} == {2}
