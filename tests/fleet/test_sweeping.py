"""The bell and the sweeper: whoever delivers is told at once, and what that misses is found."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction
from django.db.models import Model, QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from amesh_django import signals
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import bell, delivery, servers, sweeping
from amesh_django.management.commands.amesh_propagate import Propagation, watch
from amesh_django.models import AuditEvent, Device, Server, Sweep
from tests.fleet.peers import Clock, Peer, peer
from tests.fleet.servers import URL, add_server, follow, hub, laptops

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


@pytest.fixture
def ringing() -> Iterator[Callable[[bell.Ringer | None], None]]:
    """Connect what is rung, for one test."""
    before = bell._bell.ringer

    def connect(ringer: bell.Ringer | None) -> None:
        assert bell.wait(5)  # for what was rung before
        bell.connect(ringer)

    yield connect
    connect(before)


def up_to_date(*rows: Server) -> None:
    epoch, revision = servers.head()
    Server.objects.filter(pk__in=[row.pk for row in rows]).update(epoch=epoch, acked=revision)


def swept(clock: Clock) -> list[int]:
    return list(sweeping.sweep(ring=lambda pk: None, now=clock()).rung)


def test_a_change_rings_once_for_each_server(ringing: Any) -> None:
    first, second = (add_server()[0] for _ in range(2))
    _paused, device = add_server()
    servers.pause(device.identity.device_id)
    rung: list[int] = []
    sent: list[int] = []
    ringing(rung.append)

    def receive(events: list[AuditEvent], **kwargs: Any) -> None:
        sent.append(len(events))

    signals.list_changed.connect(receive)
    try:
        with transaction.atomic():
            laptops(3)
            hub().put_group("shop", ["a:b"])
            assert not rung
    finally:
        signals.list_changed.disconnect(receive)
    assert bell.wait(5)
    assert sorted(set(rung)) == [first.pk, second.pk] and sent == [3, 1]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        rung.clear()
        laptops(1)
        raise ZeroDivisionError
    assert bell.wait(5) and not rung


def test_only_servers_that_can_be_reached_are_rung(ringing: Any) -> None:
    """Who has the lease of a server looks for more in the end. Otherwise ten changes a second would be ten tasks a second for each server."""
    (free, _), (leased, _), (failing, _), (wrong, _) = (add_server(URL.replace("server", name)) for name in "abcd")
    soon, far = timezone.now() + dt.timedelta(seconds=5), timezone.now() + dt.timedelta(days=1)
    Server.objects.filter(pk=leased.pk).update(lease_until=soon, lease_by="another process")
    Server.objects.filter(pk=failing.pk).update(next_attempt_at=soon)
    Server.objects.filter(pk=wrong.pk).update(lease_until=far, lease_by="a host with a wrong clock")
    rung: list[int] = []
    ringing(rung.append)
    laptops(1)
    assert bell.wait(5) and set(rung) == {free.pk, wrong.pk}


def test_a_broker_that_hangs_or_is_down_stops_no_revocation(ringing: Any, caplog: pytest.LogCaptureFixture) -> None:
    add_server()
    names = [device.identity.device_id for device in laptops(4)]
    goes_on, calls = threading.Event(), []

    def hangs(pk: int) -> None:
        calls.append(pk)
        goes_on.wait(10)

    ringing(hangs)
    started = time.monotonic()
    for name in names[:3]:
        hub().revoke_all([name])
    assert time.monotonic() - started < 5 and not bell.wait(0.05)
    goes_on.set()
    assert bell.wait(5) and len(calls) <= 2  # what came meanwhile is rung once

    def refuses(pk: int) -> None:
        raise ConnectionRefusedError

    ringing(refuses)
    with caplog.at_level(logging.WARNING, "amesh_django.fleet"):
        hub().revoke_all(names[3:])
        assert bell.wait(5)
        hub().reinstate(names[3])
        assert bell.wait(5)
    assert caplog.text.count("could not be handed to Celery (ConnectionRefusedError)") == 1


def test_one_ring_that_fails_does_not_drop_the_others(ringing: Any, clock: Clock) -> None:
    pks = {add_server(url)[0].pk for url in ("https://one.example/amesh/", "https://two.example/amesh/")}
    rung: list[int] = []

    def fails_first(pk: int) -> None:
        rung.append(pk)
        if len(rung) == 1:
            raise ConnectionRefusedError

    ringing(fails_first)
    laptops(1)
    assert bell.wait(5) and set(rung) == pks
    rung.clear()
    assert len(sweeping.sweep(ring=fails_first, now=clock()).rung) == 1 and set(rung) == pks


def test_what_was_just_rung_is_not_rung_again(clock: Clock) -> None:
    first, _device = add_server()
    second, _other = add_server("https://second.example/amesh/")
    up_to_date(first, second)

    def rung(later: float) -> set[int]:
        now = time.time() + later
        Server.objects.update(last_sent_at=sweeping.moment_of(now))
        return set(sweeping.sweep(ring=lambda pk: None, now=now, patience=1.0).rung)

    laptops(1)
    assert rung(0.1) == set() and rung(1.2) == {first.pk, second.pk}
    Server.objects.filter(pk=first.pk).update(attempts=1)  # it was tried, in vain
    assert rung(0.1) == {first.pk}
    up_to_date(first)
    laptops(1)
    assert rung(-5) == {first.pk, second.pk}  # a host with a wrong clock


def test_a_hub_without_servers_pays_one_query(ringing: Any, django_assert_num_queries: Any) -> None:
    ringing(lambda pk: pytest.fail("rung"))
    with django_assert_num_queries(1):
        bell.on_list_changed()


def test_a_hook_of_the_project_that_raises_delays_the_change_until_the_next_sweep(ringing: Any) -> None:
    server, _device = add_server()
    up_to_date(server)
    (name,) = (device.identity.device_id for device in laptops(1))
    up_to_date(server)
    Server.objects.update(last_sent_at=sweeping.moment_of(time.time()))
    clock = Clock()
    assert swept(clock) == []

    def hook() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        transaction.on_commit(hook)
        hub().revoke_all([name])
    assert swept(clock) == [server.pk]


def test_what_the_sweeper_rings() -> None:
    clock = Clock()
    dirty, clean, paused, leased, later = (add_server()[0] for _ in range(5))
    up_to_date(clean, paused, leased, later)
    now = sweeping.moment_of(clock())
    Server.objects.update(last_sent_at=now)
    servers.pause(paused.device_id)
    assert sweeping.seconds_since(clock()) is None
    Server.objects.filter(pk=leased.pk).update(acked=0, lease_until=sweeping.moment_of(clock() + 5))
    Server.objects.filter(pk=later.pk).update(acked=0, next_attempt_at=sweeping.moment_of(clock() + 7))
    assert swept(clock) == [dirty.pk]
    clock.now += 6
    assert sorted(swept(clock)) == [dirty.pk, leased.pk]
    clock.now += 25
    assert sorted(swept(clock)) == [dirty.pk, clean.pk, leased.pk, later.pk]  # a sign of life
    assert sweeping.seconds_since(clock() + 3) == pytest.approx(3, abs=0.01) and Sweep.objects.count() == 1


def test_the_sweeper_leaves_forged_rows_and_links_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged, good = (add_server()[0] for _ in range(2))
    Server.objects.filter(pk=forged.pk).update(groups_json='["*"]')
    with caplog.at_level(logging.CRITICAL, "amesh_django.fleet"):
        found = sweeping.sweep(ring=lambda pk: None)
    assert (found.rung, found.forged) == ((good.pk,), 1) and forged.device_id in caplog.text
    assert not AuditEvent.objects.filter(seq=None).exists()


def test_the_sweeper_outlives_a_rejected_list_and_a_broker_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    add_server()

    def refuses(pk: int) -> None:
        raise ConnectionRefusedError

    with caplog.at_level(logging.WARNING, "amesh_django.fleet"):
        assert sweeping.sweep(ring=refuses).rung == ()
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM amesh_allowlistseal")
        assert sweeping.sweep(ring=lambda pk: pytest.fail("rung")).rung == ()
    assert "ConnectionRefusedError" in caplog.text and "Nothing is carried to the servers" in caplog.text
    assert sweeping.seconds_since() is not None


def test_two_deliveries_and_two_sweepers_send_each_change_once(other: Peer) -> None:
    server = follow(other)
    with Propagation() as propagation:
        assert propagation.sweep() == 1
    other.messages.clear()
    names = [device.identity.device_id for device in laptops(3)]
    hub().revoke_all(names)
    ready = threading.Barrier(4)

    def deliver(number: int) -> None:
        ready.wait(5)
        try:
            delivery.deliver(server.pk)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool, Propagation() as one, Propagation() as two:
        done = [*pool.map(deliver, range(4))]
        one.sweep()
        two.sweep()
    assert len(done) == 4 and other.told() == [("revoke", name) for name in names]


def test_the_command_brings_every_server_up_to_date_once(capsys: pytest.CaptureFixture[str]) -> None:
    with peer() as one, peer() as two:
        rows = [follow(one), follow(two)]
        call_command("amesh_propagate")
        assert "2 servers were sent something." in capsys.readouterr().out
        call_command("amesh_propagate")
        assert "0 servers" in capsys.readouterr().out
    for row in rows:
        row.refresh_from_db()
        assert (row.epoch, row.acked) == servers.head()


def test_a_revocation_in_a_damaged_list_is_delivered(other: Peer) -> None:
    follow(other)
    one, two = (device.identity.device_id for device in laptops(2))
    call_command("amesh_propagate")
    QuerySet(Device).filter(device_id=one).update(friendly_name="changed with SQL")
    DatabaseAllowList(by="alice").revoke_all([two])
    call_command("amesh_propagate")
    assert other.told() == [("revoke", two)]


@pytest.mark.slow
def test_watching_goes_on_when_the_database_was_down(caplog: pytest.LogCaptureFixture) -> None:
    ended, passes = threading.Event(), []

    def sweep() -> None:
        passes.append(time.monotonic())
        if len(passes) == 1:
            raise OperationalError("gone")
        if len(passes) == 3:
            ended.set()

    with caplog.at_level(logging.ERROR, "amesh_django.fleet"):
        watch(sweep, ended)
    assert len(passes) == 3 and "The database cannot be used (OperationalError)" in caplog.text


def test_a_view_in_a_transaction_rings_after_its_commit(ringing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with ATOMIC_REQUESTS."""
    server, _device = add_server()
    rung: list[int] = []
    ringing(rung.append)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    def view(request: object) -> None:
        laptops(1)
        assert connection.in_atomic_block and bell.wait(5) and not rung

    BaseHandler().make_view_atomic(view)(None)
    assert bell.wait(5) and rung == [server.pk]


class InAnotherDatabase:
    """A router that keeps all tables of amesh in the database ``trust``."""

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        return "trust" if model._meta.app_label == "amesh" else None

    db_for_read = db_for_write


def test_a_list_in_another_database_than_the_default_one(
    default_database: dict[str, str], other: Peer, ringing: Any, settings: Any
) -> None:
    """No other database is asked for anything."""
    rung: list[int] = []
    connections.settings["trust"] = connections.configure_settings(
        {"default": dict(default_database), "trust": dict(default_database)}
    )["trust"]
    connections["trust"] = connections.create_connection("trust")
    default = connections["default"]
    try:
        settings.DATABASE_ROUTERS = [InAnotherDatabase()]
        with CaptureQueriesContext(default) as queries:
            server = follow(other)
            ringing(rung.append)
            (name,) = (device.identity.device_id for device in laptops(1))
            hub().revoke_all([name])
            assert bell.wait(5) and set(rung) == {server.pk}
            call_command("amesh_propagate")
        assert not queries.captured_queries and not default.in_atomic_block
        server.refresh_from_db(using="trust")
        assert (server.epoch, server.acked) == servers.head() == (other.epoch, other.applied)
    finally:
        settings.DATABASE_ROUTERS = []
        connections["trust"].close()
        del connections["trust"]
        del connections.settings["trust"]
