"""A server asks its hubs, with threads and transactions as in production: a revoked device does not get in beside the question."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRuns
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connection, connections
from django.utils import timezone
from psycopg import IsolationLevel

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import freshness, posting, rarely
from amesh_django.fleet.receiving import apply_message
from amesh_django.fleet.silence import followed_hubs
from amesh_django.models import Hub
from amesh_django.test import AmeshAPIClient, AmeshAsyncClient, EphemeralDevice
from amesh_django.trust import current, current_list
from authmesh.device import LocalDevice
from tests.fleet.hubs import TestHub, status
from tests.fleet.test_freshness import Clock, Line, begin_anew
from tests.fleet.test_words import other_database
from tests.support.databases import as_default
from tests.support.services import until

pytestmark = pytest.mark.slow


def wait_for_answers() -> None:
    """Wait for what arrives late, and is applied nevertheless."""
    for thread in threading.enumerate():
        if thread.name == "amesh-pull":
            thread.join(30)


@pytest.fixture
def lines(default_database: Any, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Line]]:
    """The lines to two hubs that the server has heard."""
    found = [Line(TestHub(amesh_server.identity.device_id).trusted("revoke")) for _ in range(2)]
    for number, line in enumerate(found):
        line.hub.url = f"https://hub-{number}.example/amesh/"
        line.hub.greet()

    def post(url: str, body: bytes, **options: Any) -> posting.Answer:
        return next(line for line in found if url.startswith(line.hub.url)).post(url, body, **options)

    monkeypatch.setattr(posting, "post", post)
    rarely.reset()
    yield found
    wait_for_answers()


@pytest.fixture
def clock(lines: list[Line], monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lost(lines: list[Line]) -> EphemeralDevice:
    """A device that the second hub has revoked. Nobody has told the server."""
    device = EphemeralDevice("lost")
    DatabaseAllowList(by="person").add(device.entry())
    lines[1].events = [lines[1].hub.event("revoke", device)]
    return device


@pytest.fixture
def request_in_thread() -> Iterator[Callable[[EphemeralDevice], Any]]:
    """A function that sends a request in a thread of its own, and returns its status as a future."""

    def ask(device: EphemeralDevice) -> int:
        try:
            return status(device)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        yield lambda device: pool.submit(ask, device)


def test_a_hub_that_hangs_does_not_hold_back_the_others(lines: list[Line], clock: Clock, lost: EphemeralDevice) -> None:
    ended = threading.Event()
    lines[0].rewrite = lambda body, signature: (body, signature) if ended.wait(30) else (b"", "")
    begin_anew(clock)
    try:
        assert status(lost) == 401
    finally:
        ended.set()


def test_all_requests_wait_for_the_answer(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, request_in_thread: Any
) -> None:
    """Also for that to a later question of the process."""
    events, lines[1].events = lines[1].events, []
    begin_anew(clock)
    assert status(lost) == 200
    asked, go = threading.Event(), threading.Event()

    def hold(body: bytes, signature: str) -> tuple[bytes, str]:
        asked.set()
        go.wait(30)
        return body, signature

    lines[1].events, lines[1].rewrite = events, hold
    clock.ahead += 91
    first = request_in_thread(lost)
    assert asked.wait(30)
    second = request_in_thread(lost)
    with pytest.raises(StillRuns):
        second.result(0.2)
    go.set()
    assert (first.result(), second.result()) == (401, 401)


def test_a_key_that_is_unlocked_slowly(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, request_in_thread: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second that a request waits begins with the question."""
    monkeypatch.setattr(freshness, "PATIENCE_SECONDS", 0.3)
    lock, has_begun, unlocked, device = (
        threading.Lock(),
        threading.Event(),
        threading.Event(),
        freshness.server_device(),
    )

    def unlock() -> LocalDevice:
        with lock:
            has_begun.set()
            unlocked.wait(30)
        return device

    monkeypatch.setattr(freshness, "server_device", unlock)
    begin_anew(clock)
    first = request_in_thread(lost)
    assert has_begun.wait(30)
    second = request_in_thread(lost)
    with pytest.raises(StillRuns):
        second.result(0.6)
    unlocked.set()
    assert (first.result(), second.result()) == (401, 401)


def in_transactions(monkeypatch: pytest.MonkeyPatch, *, strictly: bool = True) -> bool:
    """Let each view run in a transaction. Return True if that locks the database from its begin.

    Args:
        monkeypatch: restores the settings.
        strictly: True for transactions that lock as early, or see as little, as the database allows.
    """
    is_sqlite, options = connection.vendor == "sqlite", dict[str, Any]()
    if strictly:
        options = (
            {"transaction_mode": "IMMEDIATE"} if is_sqlite else {"isolation_level": IsolationLevel.REPEATABLE_READ}
        )
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    connection.close()
    return strictly and is_sqlite


@pytest.mark.parametrize("strictly", [False, True])
def test_a_view_in_a_transaction(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, monkeypatch: pytest.MonkeyPatch, strictly: bool
) -> None:
    """A project with ATOMIC_REQUESTS. If the transaction of the request keeps the hub from being asked, the request is rejected."""
    is_locked = in_transactions(monkeypatch, strictly=strictly)
    begin_anew(clock)
    assert AmeshAPIClient(lost).get("/drf").status_code == (503 if is_locked else 401)
    wait_for_answers()
    assert AmeshAPIClient(lost).get("/drf").status_code == 401


def test_a_question_that_cannot_begin_rejects_requests(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database takes no lease at once, so nothing is known of the hubs: they are not silent."""

    def refuses(*args: object) -> bool:
        raise OperationalError("database is locked")

    begin_anew(clock)
    with monkeypatch.context() as patch:
        patch.setattr(freshness.HubLease, "take", refuses)
        for _ in range(2):
            assert AmeshAPIClient(lost).get("/drf").status_code == 503
            wait_for_answers()
    clock.ahead += 1.1
    assert AmeshAPIClient(lost).get("/drf").status_code == 401


def test_a_hub_that_is_away_rejects_one_request_in_a_transaction_at_most(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a hub answers is known after that."""
    lines[0].is_down = lines[1].is_down = True
    is_locked = in_transactions(monkeypatch)
    if is_locked:
        monkeypatch.setattr(freshness, "PATIENCE_SECONDS", 0.2)
    begin_anew(clock)
    assert AmeshAPIClient(lost).get("/drf").status_code == (503 if is_locked else 200)
    for _ in range(2):
        wait_for_answers()
        clock.ahead += 11
        assert AmeshAPIClient(lost).get("/drf").status_code == 200


def test_a_transaction_that_began_before_another_process_asked(
    lines: list[Line], clock: Clock, lost: EphemeralDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not see what the other process has applied, but the request must not be judged by that."""
    in_transactions(monkeypatch, strictly=connection.vendor != "sqlite")
    begin_anew(clock)
    (hub,) = [
        one
        for one in followed_hubs(current_list(), current_list().snapshot(), 0)
        if one.device.device_id == lines[1].hub.id
    ]
    row = Hub.objects.filter(device_id=lines[1].hub.id)
    row.update(lease_until=timezone.now() + dt.timedelta(seconds=clock.ahead + 5), lease_by="another process")
    ours = dict(current._lists)

    def ask() -> int:
        try:
            return AmeshAPIClient(lost).get("/drf").status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        until(lambda: lines[0].asked and Hub.objects.get(device_id=lines[0].hub.id).lease_until is None)
        current._lists.clear()
        apply_message(lines[1].hub.message(*lines[1].events), hub.device, now=time.time() + clock.ahead)
        current._lists.clear()
        current._lists.update(ours)
        row.update(lease_until=None, lease_by="")
        assert answer.result() == 401
    assert not lines[1].asked


@pytest.mark.parametrize("protected", ["middleware", "decorator"])
def test_an_async_view(lines: list[Line], clock: Clock, lost: EphemeralDevice, settings: Any, protected: str) -> None:
    path = {"middleware": "/middleware/async", "decorator": "/decorator/async"}[protected]
    if protected == "middleware":
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware"]
        settings.AMESH = {**settings.AMESH, "PROTECT": ["/middleware/"]}
    begin_anew(clock)

    def forget() -> None:  # the thread outlives the test, and its database does not
        connections["default"].close()
        del connections["default"]

    async def ask() -> list[int]:
        try:
            client = AmeshAsyncClient(lost)
            return [(await client.get(path)).status_code for _ in range(2)]
        finally:
            await sync_to_async(forget)()

    assert asyncio.run(ask()) == [401, 401]


def test_a_list_in_another_database(
    default_database: dict[str, str], amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}
    with as_default(empty), other_database(default_database):
        line = Line(TestHub(amesh_server.identity.device_id).trusted("revoke"))
        line.hub.url = "https://hub.example/amesh/"
        line.hub.greet()
        monkeypatch.setattr(posting, "post", line.post)
        device = EphemeralDevice("lost")
        DatabaseAllowList(by="person").add(device.entry())
        line.events = [line.hub.event("revoke", device)]
        begin_anew(Clock(monkeypatch))
        assert AmeshAPIClient(device).get("/drf").status_code == 401
        assert len(line.asked) == 1
        wait_for_answers()
