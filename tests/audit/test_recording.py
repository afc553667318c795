"""Events that are not changes of the list: who writes them, that they stop nothing, and the signals and records for each event."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from amesh_django import signals
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import placing, refusals, settings
from amesh_django.audit.recording import record
from amesh_django.audit.refusals import OTHER, Group, Refusals
from amesh_django.audit.verifying import verify
from amesh_django.enrollment import tokens
from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from amesh_django.trust.chain import Actor, ChainedRows, data_of
from authmesh.protocol.errors import AllowListIntegrityFailure, Unauthorized
from tests.commands.test_management import call
from tests.trust.test_database_allow_list import entry, sql

pytestmark = pytest.mark.usefixtures("amesh_server", "default_database")


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by=Actor("alice", "user"))


def kinds() -> list[str]:
    return list(AuditEvent.objects.order_by("id").values_list("kind", flat=True))


def test_tokens_exports_and_verifications_are_events(devices: DatabaseAllowList, tmp_path: Path, settings: Any) -> None:
    made = tokens.make(
        url="https://api.example/amesh/", name="sensors", uses=3, lifetime=60, by=Actor("bob", "command")
    )
    tokens.withdraw(made.row.jti, by=Actor("bob", "command"))
    assert call("export", str(tmp_path / "list.json")).code == 0
    assert call("audit", "--seal", "--verify").code == 0
    found = {event.kind: event for event in AuditEvent.objects.all()}
    assert kinds() == ["token_made", "token_withdrawn", "export", "setting", "checkpoint", "verified"]
    assert (found["token_made"].subject, found["token_made"].actor, found["token_made"].actor_type) == (
        "sensors", "bob", "command",
    )  # fmt: skip
    assert data_of(found["token_made"])["jti"] == made.row.jti
    assert [event.seq for event in AuditEvent.objects.order_by("id")] == [1, 2, 3, 4, 5, None]
    call("audit", "--seal")
    assert kinds().count("setting") == 1  # nothing has changed
    settings.AMESH = {**settings.AMESH, "MAX_CONTROLLERS": 7}
    from_now_on()
    call("audit", "--seal")
    last = AuditEvent.objects.latest("id")
    assert (last.kind, last.subject) == ("setting", "MAX_CONTROLLERS")
    assert (data_of(last)["settings"]["MAX_CONTROLLERS"], data_of(last)["before"]["MAX_CONTROLLERS"]) == (7, None)
    assert verify(current_list(), timezone.now()).fault is None


def from_now_on() -> None:
    from amesh_django import lifecycle

    lifecycle.reset()


def test_a_pairing_that_fails_is_an_event() -> None:
    assert call("invite", "123456", "--relay", "not an address").code != 0
    assert kinds() == ["pairing_begun", "pairing_failed"]
    assert AuditEvent.objects.get(kind="pairing_failed").reason_code == "invalid_relay_url"


def test_an_event_that_cannot_be_written_stops_nothing(
    devices: DatabaseAllowList, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*arguments: Any) -> Any:
        raise DatabaseError("down")

    monkeypatch.setattr(ChainedRows, "log_keys", down)
    record("export")
    assert [found.message for found in caplog.records] == [
        "Events could not be written to the audit log (DatabaseError): export"
    ]
    devices.add(entry(1))
    with transaction.atomic():
        record("export")
        transaction.set_rollback(True)
    monkeypatch.undo()
    with transaction.atomic():
        record("export")
        assert kinds() == ["trust"]
    assert kinds() == ["trust", "export"]


def test_a_change_fails_with_its_event(devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*arguments: Any) -> Any:
        raise DatabaseError("down")

    monkeypatch.setattr(ChainedRows, "write_end", down)
    with pytest.raises(DatabaseError):
        devices.add(entry(1))
    monkeypatch.undo()
    assert devices.read() == [] and kinds() == []


def test_each_event_is_a_record_and_a_signal_once_it_is_committed(
    devices: DatabaseAllowList, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, ...]] = []

    def hear(name: str) -> Any:
        def receiver(*, event: AuditEvent, device_id: str, by: str, reason: str, **more: Any) -> None:
            heard.append((name, device_id, more["name"], by, reason))
            raise RuntimeError("a receiver that fails changes nothing")

        getattr(signals, name).connect(receiver, weak=False, dispatch_uid="test")
        return receiver

    names = ("device_trusted", "permissions_changed", "device_revoked", "token_created")
    kept = [hear(name) for name in names]
    caplog.set_level(logging.INFO, "amesh_django.audit")
    try:
        with transaction.atomic():
            devices.add(entry(1, name="sensor"))
            assert not heard
            transaction.set_rollback(True)
        devices.add(entry(1, name="sensor"))
        devices.set_permissions(entry(1).device_id, {"shell": True})
        devices.revoke(entry(1).device_id, reason="lost")
        tokens.make(url="https://api.example/amesh/", name="many", uses=1, lifetime=60, by="alice")
    finally:
        for name in names:
            getattr(signals, name).disconnect(dispatch_uid="test")
    device = entry(1).device_id
    assert len(kept) == 4 and heard == [
        ("device_trusted", device, "sensor", "alice", ""),
        ("permissions_changed", device, "sensor", "alice", ""),
        ("device_revoked", device, "sensor", "alice", "lost"),
        ("token_created", "", "many", "alice", ""),
    ]
    (record_of_revoke,) = [found for found in caplog.records if getattr(found, "event", "") == "revoke"]
    members = record_of_revoke.__dict__
    assert (members["device_id"], members["device_name"], members["actor"], members["actor_type"], members["detail"]) == (
        device, "sensor", "alice", "user", "lost",
    )  # fmt: skip
    assert members["mac"] == AuditEvent.objects.get(kind="revoke").mac


def test_a_broken_seal_is_told_once(devices: DatabaseAllowList) -> None:
    told: list[str] = []

    def receiver(*, error: AllowListIntegrityFailure, **more: Any) -> None:
        told.append(error.reason)

    signals.seal_broken.connect(receiver, weak=False, dispatch_uid="test")
    try:
        devices.add(entry(1))
        for expected in (1, 2):
            sql("UPDATE amesh_device SET friendly_name = 'forged'")
            for _ in range(3):
                with pytest.raises(AllowListIntegrityFailure):
                    current_list().snapshot()
            assert told == ["rows_mismatch"] * expected
            sql("UPDATE amesh_device SET friendly_name = %s", entry(1).friendly_name)
            current_list().snapshot()
    finally:
        signals.seal_broken.disconnect(dispatch_uid="test")


def test_events_are_placed_in_batches_and_forged_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placing, "BATCH_EVENTS", 3)

    def forge(count: int) -> None:
        AuditEvent.objects.bulk_create(
            [AuditEvent(kind="export", at=timezone.now(), mac="f" * 64) for _ in range(count)]
        )

    read: list[int] = []

    def reading(self: ChainedRows, event: AuditEvent) -> bool:
        if connection.in_atomic_block:  # a change of the list waits
            read.append(event.pk)
        return genuine(self, event)

    genuine = ChainedRows.is_genuine_event
    monkeypatch.setattr(ChainedRows, "is_genuine_event", reading)
    monkeypatch.setattr(placing, "_told", {})
    forge(10)
    for _ in range(4):
        record("export")
    forge(3)
    for _ in range(3):
        record("export")
    sealed = current_list()
    assert [placing.place_all(sealed) for _ in range(2)] == [(7, 13), (0, 13)]
    assert len(read) == 7
    assert AuditEvent.objects.filter(seq__isnull=True).count() == 13
    assert caplog.text.count("13 events of the audit log were inserted outside Django") == 1
    done = call("audit", "--seal")
    assert "No event waited" not in done.out and "13 events were inserted outside Django and get no place" in done.err
    found = verify(sealed, timezone.now())
    assert found.fault is not None and found.fault.text == "inserted"
    AuditEvent.objects.filter(seq__isnull=True).delete()
    assert verify(sealed, timezone.now()).fault is None


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def group(number: int, reason: str = "unknown_key") -> Group:
    return Group(reason, "unknown", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}/32")


@pytest.mark.slow
def test_a_million_refusals_with_random_keys_are_at_most_a_thousand_events() -> None:
    clock, written = Clock(), list[tuple[Group, int]]()
    counts = Refusals(written.extend, clock)
    flushes = 0
    for number in range(1_000_000):
        clock.now = 1000 + number * 59 / 1_000_000
        counts.count(group(number))
        if counts.is_due:
            counts.flush()
            flushes += 1
    assert flushes == 7  # the first, the first that is one of the others, and every ten seconds
    assert len(counts._known) == 1000 and len(counts._pending) <= 1001
    clock.now = 1060.0
    counts.flush()
    assert len(written) <= 1000
    assert sum(times for _group, times in written) == 1_000_000
    assert dict(written)[OTHER] and written[0] == (group(0), 1)


def test_the_first_of_a_kind_is_written_at_once_and_the_rest_every_ten_seconds() -> None:
    clock, written = Clock(), list[tuple[Group, int]]()
    counts = Refusals(written.extend, clock)

    def come(*groups: Group) -> list[tuple[Group, int]]:
        written.clear()
        for one in groups:
            counts.count(one)
            if counts.is_due:
                counts.flush()
        return list(written)

    assert come(group(1), group(1), group(2)) == [(group(1), 1)]
    assert come(group(1, "replay_detected")) == [(group(1), 1), (group(2), 1), (group(1, "replay_detected"), 1)]
    clock.now += 9
    assert come(group(1)) == []
    clock.now += 2
    assert come(group(1)) == [(group(1), 2)]
    clock.now += 60
    assert come(group(3)) == [(group(3), 1)]


def test_a_refused_request_is_an_event(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals.reset()
    for _ in range(3):
        client.get("/decorator/sync", REMOTE_ADDR="192.0.2.77", headers={"Authorization": "AuthMesh v1:x"})
    event = AuditEvent.objects.get(kind="refusal")
    assert (event.address, event.actor_type, data_of(event)["times"]) == ("192.0.2.0/24", "system", 1)
    assert event.reason_code
    error = Unauthorized(reason="unknown_key")
    request = client.get("/decorator/sync", REMOTE_ADDR="2001:db8::1").wsgi_request
    assert refusals.group_of(request, error) == Group("unknown_key", "unknown", "2001:db8::/64")
    assert connection.in_atomic_block is False
    assert settings.note(by="x")


def test_counts_that_were_written_leave_no_connection_that_is_too_old() -> None:
    """Django's own receiver of `request_finished` has run before."""
    refusals.reset()
    refusals._refusals.count(group(1))
    connection.ensure_connection()
    connection.close_at = 0.0  # until it is opened again
    refusals.flush_after_request()
    assert connection.connection is None
    assert AuditEvent.objects.filter(kind="refusal").exists()
