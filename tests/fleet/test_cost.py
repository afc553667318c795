"""What a delivery costs if many servers are told the same: each change is read once, and each server takes a few statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from amesh_django.fleet import delivery, servers, tail
from amesh_django.models import AuditEvent
from tests.fleet.peers import Clock, Peer, peer
from tests.fleet.servers import add_server, follow, hub, laptops, message, told

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


@pytest.fixture
def another() -> Iterator[Peer]:
    """A second server."""
    with peer() as found:
        yield found


def test_what_one_server_was_told_costs_the_next_six_statements(other: Peer, another: Peer, clock: Clock) -> None:
    rows = [follow(other), follow(another)]
    for row in rows:
        delivery.deliver(row.pk, now=clock)
    (device,) = laptops(1)
    hub().revoke_all([device.identity.device_id])
    delivery.deliver(rows[0].pk, now=clock)
    with CaptureQueriesContext(connection) as found:
        delivery.deliver(rows[1].pk, now=clock)
    assert another.told() == other.told() == [("revoke", device.identity.device_id)]
    verbs = [one["sql"].split()[0] for one in found.captured_queries]
    # The lease, the row, and the seal; the lease before the message is sent; what was acknowledged, with which the lease ends; the seal,
    # in case that more was changed meanwhile. The event about it is written on commit.
    statements = ["UPDATE", "SELECT", "SELECT", "UPDATE", "UPDATE", "SELECT"]
    assert verbs == statements, found.captured_queries


def test_a_change_that_comes_while_the_lease_ends_is_delivered_at_once(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was rung for it found the lease taken. The sweeper would come a second later."""
    server = follow(other)
    names = [device.identity.device_id for device in laptops(2)]
    record, more = delivery._record_delivery, iter(names)

    def late(*args: Any) -> None:
        record(*args)
        hub().revoke_all([name for _, name in zip(range(1), more, strict=False)])

    monkeypatch.setattr(delivery, "_record_delivery", late)
    delivery.deliver(server.pk, now=clock)
    assert other.told() == [("revoke", name) for name in names]
    server.refresh_from_db()
    assert (server.acked, server.lease_by, server.lease_until) == (servers.head().revision, "", None)


def test_a_change_that_comes_while_nothing_is_to_be_sent_is_delivered_at_once(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = follow(other)
    delivery.deliver(server.pk, now=clock)
    (device,) = laptops(1)
    delivery.deliver(server.pk, now=clock)
    is_silent, more = delivery.is_silent, [device.identity.device_id]

    def late(*args: Any) -> bool:  # after it was seen that the server lacks nothing
        hub().revoke_all([more.pop() for _ in more[:1]])
        return is_silent(*args)

    monkeypatch.setattr(delivery, "is_silent", late)
    delivery.deliver(server.pk, now=clock)
    assert other.told() == [("revoke", device.identity.device_id)]


def test_a_message_says_what_was_seen_and_a_later_change_is_no_forged_one(caplog: pytest.LogCaptureFixture) -> None:
    server, _itself = add_server()
    one, two = (device.identity.device_id for device in laptops(2))
    after = servers.head().revision
    hub().revoke_all([one])
    seen = servers.look()
    hub().revoke_all([two])
    for _is_kept in (False, True):
        found = message(server, after=after, seen=seen)
        assert told(found) == [("revoke", one)] and found.head == found.until == after + 1
        assert told(message(server, after=after)) == [("revoke", one), ("revoke", two)]
    assert not caplog.records


def test_a_process_keeps_the_newest_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_KEPT", 2)
    server, _itself = add_server()
    names = [device.identity.device_id for device in laptops(4)]
    after = servers.head().revision
    for name in names:
        hub().revoke_all([name])
        assert told(message(server, after=servers.head().revision - 1)) == [("revoke", name)]
    with CaptureQueriesContext(connection) as found:
        assert told(message(server, after=after + 2)) == [("revoke", name) for name in names[2:]]
    assert not any(AuditEvent._meta.db_table in one["sql"] for one in found.captured_queries)
    assert told(message(server, after=after)) == [("revoke", name) for name in names]


def test_a_process_keeps_no_changes_of_another_branch_of_the_list(caplog: pytest.LogCaptureFixture) -> None:
    """Here a transaction that is rolled back; the same seal number then stands for other changes."""
    server, _itself = add_server()
    one, two = (device.identity.device_id for device in laptops(2))
    after = servers.head().revision
    with transaction.atomic():
        hub().revoke_all([one])
        assert told(message(server, after=after)) == [("revoke", one)]
        transaction.set_rollback(True)
    hub().revoke_all([two])
    assert told(message(server, after=after)) == [("revoke", two)] and not caplog.records
