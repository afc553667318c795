"""What a server is told: from the audit log, and from the rows if the log is not enough."""

from __future__ import annotations

import datetime as dt
import logging
import time

import pytest
from django.db.models import QuerySet
from django.utils import timezone

from amesh_django.enrollment import rotating
from amesh_django.fleet import feed, servers
from amesh_django.models import AuditEvent, Device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current, current_list
from authmesh.device import LocalDevice
from authmesh.device.grants import Grant
from authmesh.protocol.fleet.events import key_hash
from authmesh.protocol.fleet.feed import FeedMessage
from authmesh.protocol.rotation import build_rotation
from tests.fleet.servers import add_server, hub, laptops, message, told

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


def test_revoking_and_suspending_reach_every_server_in_their_order() -> None:
    server, itself = add_server()
    after = servers.head().revision
    one, two = laptops(2)
    ids = [device.identity.device_id for device in (one, two)]
    end = timezone.now() + dt.timedelta(hours=1)
    hub().suspend([ids[0]], until=end, reason="holiday")
    hub().lift([ids[0]])
    hub().revoke_all(ids, reason="lost")
    hub().reinstate(ids[1])
    hub().rename(ids[1], "other name")
    hub().revoke_all([itself.identity.device_id])
    found = message(server, after=after)
    assert told(found) == [
        ("suspend", ids[0]),
        ("lift", ids[0]),
        ("revoke", ids[0]),
        ("revoke", ids[1]),
        ("reinstate", ids[1]),
    ]
    assert [event.serial - after for event in found.events] == [2, 3, 4, 4, 5]
    assert (found.after, found.until, found.head) == (after, after + 7, servers.head().revision)
    assert not found.revocations and found.epoch == servers.head().epoch
    suspended, _lifted, revoked, *_others = found.events
    assert suspended.reason == "holiday" and suspended.until is not None
    assert abs((suspended.until - end).total_seconds()) < 1
    assert (revoked.reason, revoked.key) == ("lost", key_hash(one.identity.public_key))
    assert FeedMessage.from_json(found.to_json()).events == tuple(
        FeedMessage.from_json(message(server, after=after).to_json()).events
    )


def test_an_enrolled_server_is_told_whom_to_trust_and_who_has_left_its_groups() -> None:
    hub().put_group("shop", ["orders:read"])
    server, _itself = add_server(scope_of_events="enroll", groups=["shop"])
    after = servers.head().revision
    device, other = laptops(2, permissions={"scopes": ["stock:read"], "colour": "red", "shell": True})
    name = device.identity.device_id
    in_shop = Grant(groups=frozenset({"shop"}))
    hub().grant([name], in_shop)
    hub().put_group("shop", ["orders:*"])
    hub().rename(other.identity.device_id, "elsewhere")
    hub().suspend([name])
    hub().grant([name], Grant(), taken=in_shop)
    hub().lift([name])
    found = message(server, after=after)
    # Revision 3 has other scopes of the group, and told the members of then: none is left.
    expected = [("trust", 2), ("suspend", 5), ("revoke", 6), ("lift", 7)]
    assert [(event.event, event.serial - after) for event in found.events] == expected
    first = found.events[0].trusted
    assert first is not None and first.public_key == device.identity.public_key
    assert (first.name, first.permissions) == (device.identity.friendly_name, {"colour": "red"})
    assert first.scopes == ("orders:*", "stock:read")
    assert found.events[2].reason == "left_group"


def test_a_suspended_device_is_not_trusted_anew() -> None:
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    (name,) = (device.identity.device_id for device in laptops(1))
    after = servers.head().revision
    hub().suspend([name])
    hub().rename(name, "other name")
    assert told(message(server, after=after)) == [("suspend", name)]
    hub().suspend([name], until=timezone.now() + dt.timedelta(milliseconds=1))
    hub().rename(name, "a third name")  # its suspension has ended by now
    assert told(message(server, after=after))[-1] == ("trust", name)


def test_who_comes_back_has_the_rights_of_now() -> None:
    """What a device may do can change while it is suspended or revoked, and a server can be added meanwhile."""
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    told_of_revocations, _other = add_server()
    (name,) = (device.identity.device_id for device in laptops(1))
    hub().grant([name], Grant(scopes=["orders:write"]))
    for undo in ("lift", "reinstate"):
        if undo == "lift":
            hub().suspend([name])
            hub().grant([name], Grant(), taken=Grant(scopes=["orders:write"]))
        else:
            hub().revoke_all([name])
        after = servers.head().revision
        _done = hub().lift([name]) if undo == "lift" else hub().reinstate(name)
        (found,) = message(server, after=after).events
        assert found.event == undo and found.trusted is not None
        assert found.trusted.scopes == ()
        (found,) = message(told_of_revocations, after=after).events
        assert found.trusted is None


def test_other_scopes_of_a_group_reach_its_members() -> None:
    hub().put_group("shop", ["orders:read"])
    server, _itself = add_server(scope_of_events="enroll", groups=["shop"])
    (device,) = laptops(1)
    hub().grant([device.identity.device_id], Grant(groups=frozenset({"shop"})))
    after = servers.head().revision
    hub().put_group("shop", ["orders:write"])
    (event,) = message(server, after=after).events
    assert event.trusted is not None and event.trusted.scopes == ("orders:write",)


def test_who_waits_is_told_of_after_the_approval(settings: object) -> None:
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    after = servers.head().revision
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}  # type: ignore[attr-defined]
    one, two = (device.identity.device_id for device in laptops(2))
    assert told(message(server, after=after)) == []
    hub().approve([one])
    hub().deny([two])
    expiry = timezone.now() + dt.timedelta(days=1)
    hub().set_expiry([one], expiry)
    found = message(server, after=after)
    assert told(found) == [("trust", one), ("trust", one)]
    assert found.events[1].trusted is not None and found.events[1].trusted.expires_at is not None


def test_a_rotation_is_told_to_servers_that_trust_by_the_hub(amesh_server: LocalDevice) -> None:
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    plain, _other = add_server()
    (old,) = laptops(1)
    after = servers.head().revision
    new = EphemeralDevice("laptop 0")
    now = time.time()
    request = build_rotation(
        old_device_id=old.identity.device_id,
        new_public_key=new.identity.public_key,
        audience=amesh_server.identity.device_id,
        now=int(now),
        sign=new.sign,
    )
    rotating.rotate(request, public_key=old.identity.public_key, now=now)
    revoked, trusted = sorted(message(server, after=after).events, key=lambda event: event.event)
    assert (revoked.event, revoked.device_id) == ("revoke", old.identity.device_id)
    assert revoked.successor == trusted.device_id == new.identity.device_id
    assert revoked.effective_at is not None and revoked.effective_at.timestamp() > now + 500
    assert told(message(plain, after=after)) == []


def test_a_message_ends_between_two_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_EVENTS", 5)
    server, _itself = add_server()
    names = [device.identity.device_id for device in laptops(10)]
    after = servers.head().revision
    for start, end in ((0, 3), (3, 5), (5, 6), (6, 10)):
        hub().revoke_all(names[start:end])
    cut = []
    while after < servers.head().revision:
        found = message(server, after=after)
        cut.append(len(found.events))
        assert FeedMessage.from_json(found.to_json()).until == found.until
        after = found.until
    assert cut == [5, 5]
    hub().add_all([device.entry() for device in (EphemeralDevice() for _ in range(6))])
    more = [row.device_id for row in Device.objects.filter(revoked_at=None, role="controller")]
    after = servers.head().revision
    hub().revoke_all(more)
    assert len(message(server, after=after).events) == 6  # a revision is never divided


def test_a_server_that_is_far_behind_gets_the_list_and_then_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_EVENTS", 3)
    server, _itself = add_server()
    names = [device.identity.device_id for device in laptops(5)]
    after = servers.head().revision
    for name in names:
        hub().revoke_all([name])
    found = message(server, after=after)
    assert (bool(found.revocations), told(found)) == (True, [("revoke", name) for name in names[:3]])
    rest = message(server, after=found.until)
    assert (bool(rest.revocations), told(rest)) == (False, [("revoke", name) for name in names[3:]])
    assert message(server, after=found.until, with_list=True).revocations


def test_a_server_of_another_epoch_gets_the_list_and_what_the_rows_say() -> None:
    one, two, three, _four = (device.identity.device_id for device in laptops(4))
    hub().suspend([one])
    hub().revoke_all([two])
    hub().revoke_all([three])
    hub().reinstate(three)
    plain, _itself = add_server()
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    found = message(plain, epoch="", after=0)
    assert (found.after, bool(found.revocations), told(found)) == (0, True, [("suspend", one)])
    assert found.until == found.head == servers.head().revision
    hub().reseal(by="alice")
    found = message(server, epoch="an older one", after=3)
    assert found.revocations and found.until == servers.head().revision
    assert told(found)[-2:] == [("suspend", one), ("trust", three)] and len(found.events) == 3


def test_a_revision_that_is_missing_is_noticed_and_the_list_goes_instead(caplog: pytest.LogCaptureFixture) -> None:
    server, _itself = add_server()
    names = [device.identity.device_id for device in laptops(4)]
    after = servers.head().revision
    hub().revoke_all(names[:1])
    hub().suspend(names[1:3])
    hub().revoke_all(names[3:])
    hub().lift(names[2:3])
    AuditEvent.objects.filter(kind="suspend").delete()
    with caplog.at_level(logging.CRITICAL, "amesh_django.fleet"):
        found = message(server, after=after)
    assert "lacks changes after revision" in caplog.text and "amesh_audit --verify" in caplog.text
    assert (bool(found.revocations), found.until) == (True, found.head)
    assert told(found) == [("suspend", names[1]), ("lift", names[2])]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("way", ["removed", "changed", "moved"])
def test_one_event_of_a_revision_that_is_missing_is_a_gap(place: int, way: str) -> None:
    """Otherwise one of the devices would never be revoked at the servers."""
    server, _itself = add_server()
    names = [device.identity.device_id for device in laptops(3)]
    after = servers.head().revision
    hub().revoke_all(names)
    rows = AuditEvent.objects.filter(kind="revoke").order_by("seq")
    one = rows[place]
    if way == "removed":
        one.delete()
    elif way == "changed":
        AuditEvent.objects.filter(pk=one.pk).update(device_id="am_another")
    else:  # a copy of another one takes its place
        other = rows[(place + 1) % 3]
        seq, one.seq = one.seq, None
        AuditEvent.objects.filter(pk=one.pk).delete()
        other.pk, other.seq = None, seq
        other.save()
    found = message(server, after=after)
    assert found.revocations


def test_a_log_that_begins_later_is_no_damage(caplog: pytest.LogCaptureFixture) -> None:
    server, _itself = add_server()
    after = servers.head().revision
    laptops(1)
    laptops(1)
    AuditEvent.objects.filter(revision__lte=after + 1).delete()
    found = message(server, after=after)
    assert found.revocations and not caplog.records


def copy_of(event: AuditEvent) -> AuditEvent:
    event.pk, event.seq = None, (event.seq or 0) + 2
    return event


def test_an_event_that_amesh_did_not_write_is_not_carried_on(caplog: pytest.LogCaptureFixture) -> None:
    server, _itself = add_server()
    one, two = (device.identity.device_id for device in laptops(2))
    after = servers.head().revision
    hub().suspend([one])
    event = AuditEvent.objects.get(kind="suspend")
    event.pk, event.seq, event.device_id = None, (event.seq or 0) + 1, two  # a copy about another device
    event.kind = "revoke"
    event.save()
    AuditEvent.objects.bulk_create([copy_of(AuditEvent.objects.get(kind="suspend"))])
    assert told(message(server, after=after)) == [("suspend", one)]
    assert "an event that amesh did not write" in caplog.text
    AuditEvent.objects.filter(kind="suspend").update(text="forged")
    assert told(message(server, after=after)) == [("suspend", one)]  # this process has verified the event before
    current.reset()  # a process that has not
    found = message(server, after=after)  # no event of the revision is genuine
    assert found.revocations and told(found) == [("suspend", one)]


def test_a_server_that_is_ahead_is_asked_for_nothing() -> None:
    server, _itself = add_server()
    found = message(server, after=10**6)
    assert (found.after, found.until, told(found)) == (10**6, servers.head().revision, [])
    assert FeedMessage.from_json(found.to_json()).head == servers.head().revision


def test_a_revocation_in_a_damaged_list_is_carried_on() -> None:
    server, itself = add_server()
    one, two = (device.identity.device_id for device in laptops(2))
    after = servers.head().revision
    QuerySet(Device).filter(device_id=one).update(friendly_name="changed with SQL")
    current_list().distrust()
    hub().revoke_all([two])
    assert told(message(server, after=after)) == [("revoke", two)]
    assert servers.public_key_of(itself.identity.device_id) == itself.identity.public_key


def test_an_event_that_was_moved_into_an_older_revision_is_a_gap() -> None:
    server, _device = add_server()
    ids = [device.identity.device_id for device in laptops(2)]
    after = servers.head().revision
    hub().revoke_all(ids, reason="lost")
    first = AuditEvent.objects.filter(revision=after + 1).order_by("seq").first()
    assert first is not None
    QuerySet(AuditEvent).filter(pk=first.pk).update(revision=after)
    assert message(server, after=after).revocations
