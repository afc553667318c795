"""Keys that were replaced: what a hub says about them, and what that means at a server."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import QuerySet

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import feed, servers, signed_list
from amesh_django.models import Device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.fleet.events import key_hash
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, row, status
from tests.fleet.servers import add_server, message, told

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke and add devices, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.greet()
    return found


def end_overlap(device: EphemeralDevice) -> None:
    """Let the time have passed for which a key that was replaced is accepted."""
    ended = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    current_list().change(
        "tests",
        lambda pending: pending.update(pending.select(device_id=device.identity.device_id)[0], revoked_at=ended),
    )


def replaced(hub: TestHub, old: EphemeralDevice, new: EphemeralDevice, **options: Any) -> Any:
    """The event about a key that was replaced at the hub."""
    end = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)
    options = {"effective_at": end, "reason": "rotated", **options}
    return hub.event("revoke", old, successor=new.identity.device_id, **options)


@pytest.mark.parametrize("is_added", [True, False], ids=["added by the hub", "known here"])
def test_a_replacement_at_the_hub_never_revokes_the_new_key(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice, is_added: bool
) -> None:
    """Also if the old key is not accepted here any more when the event comes."""
    old, new = EphemeralDevice(), EphemeralDevice()
    if is_added:
        hub.say(hub.trust(old))
    else:
        amesh_trust(old)
    assert ask(old, new, amesh_server).status_code == 200
    end_overlap(old)
    answer = hub.say(replaced(hub, old, new))
    assert [why for _serial, why in answer.refused] == ([] if is_added else ["known_here"])
    assert status(old) == 401 and status(new) == 200


def test_the_list_revokes_a_replaced_key_alone(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """And only if the hub has added the device: another one replaces its key here itself, and may not have done so yet."""
    added, renewed, known, next_one, other = (EphemeralDevice() for _ in range(5))
    hub.say(hub.trust(added), hub.trust(renewed))
    amesh_trust(known)
    assert ask(renewed, next_one, amesh_server).status_code == 200
    end_overlap(renewed)
    serials = {added: 3, renewed: 3, known: 3}
    newer = {added: other, renewed: next_one, known: other}
    answer = hub.say(revocations=hub.list(serials, replaced=newer), after=2, until=3, head=3)
    assert answer.applied == 3 and not answer.refused
    assert status(added) == status(renewed) == 401
    assert (row(added).revoke_reason, row(added).revoked_by) == ("rotated", hub.by)
    assert status(next_one) == status(known) == 200
    hub.say(revocations=hub.list({known: 4}), after=3, until=4, head=4)
    assert status(known) == 401


def test_the_list_says_which_keys_were_replaced(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """If a device was revoked, so are the keys that it has replaced before: elsewhere, it may have no other one."""
    old, new, gone, stolen = (EphemeralDevice() for _ in range(4))
    own, trusted = amesh_server.identity, DatabaseAllowList(by="tests")
    for first, second in ((old, new), (gone, stolen)):
        amesh_trust(first)
        assert ask(first, second, amesh_server).status_code == 200
        end_overlap(first)

    def listed(*devices: EphemeralDevice) -> list[str]:
        signed_list.reset()
        text = signed_list.build(time.time())
        found = signed_list.verify(text, issuer=own.device_id, issuer_key=own.public_key, now=time.time())
        by_key = {one.key: one.next for one in found.revoked}
        return [by_key[key_hash(device.identity.public_key)] for device in devices]

    assert listed(old, gone) == [new.identity.device_id, stolen.identity.device_id]
    trusted.revoke(stolen.identity.device_id, reason="stolen")
    assert listed(old, gone, stolen) == [new.identity.device_id, "", ""]
    trusted.purge(gone.identity.device_id)
    trusted.purge(stolen.identity.device_id)
    trusted.revoke(new.identity.device_id)
    trusted.purge(old.identity.device_id)
    trusted.reinstate(new.identity.device_id)
    assert listed(old, gone, stolen) == [new.identity.device_id, "", ""]


def test_the_end_of_a_replaced_key_is_told_from_the_rows(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """The signed list does not have the key yet, and the server does not ask for this revision again."""
    server, _itself = add_server(scope_of_events="enroll", groups=["*"])
    plain, _other = add_server("https://other.example/amesh/")
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    found = message(server, epoch="", after=0)
    (event,) = [one for one in found.events if one.device_id == old.identity.device_id]
    assert (event.event, event.successor) == ("revoke", new.identity.device_id)
    assert event.effective_at is not None and event.effective_at.timestamp() > time.time()
    assert ("trust", new.identity.device_id) in told(found) and found.until == found.head
    assert told(message(plain, epoch="", after=0)) == []
    DatabaseAllowList(by="tests").suspend([new.identity.device_id], until=event.effective_at)
    suspended = {one.device_id: one for one in message(plain, epoch="", after=0).events}
    assert suspended[old.identity.device_id].until is None
    assert suspended[new.identity.device_id].until is not None


@pytest.mark.parametrize("order", [0, 1])
def test_events_about_both_keys_of_a_device_come_in_one_message(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice, order: int
) -> None:
    """The first of them changes both rows."""
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    keys = [old, new] if order else [new, old]
    for name, expected in (("suspend", 401), ("lift", 200), ("revoke", 401)):
        serial = hub.sent + 1
        assert not hub.say(*[hub.event(name, key, serial) for key in keys]).refused
        assert status(old) == status(new) == expected


def test_a_replaced_key_keeps_its_overlap_if_the_next_one_was_replaced_here(
    hub: TestHub, amesh_server: LocalDevice
) -> None:
    """The next key is still valid until its own overlap ends, so it is the successor that the hub has added."""
    first, second, third = (EphemeralDevice() for _ in range(3))
    hub.say(hub.trust(first), hub.trust(second))
    assert ask(second, third, amesh_server).status_code == 200
    assert not hub.say(replaced(hub, first, second)).refused
    assert [status(one) for one in (first, second, third)] == [200] * 3
    assert (row(first).revoke_reason, row(first).revoked_by) == ("rotated", second.identity.device_id)
    hub.say(hub.event("revoke", first))
    assert [status(one) for one in (first, second, third)] == [401] * 3


@pytest.mark.parametrize("is_over", [False, True], ids=["in the overlap", "after it"])
@pytest.mark.parametrize("undo", ["reinstate", "trust"])
@pytest.mark.parametrize("by_old", [True, False], ids=["old key", "new key"])
def test_a_device_comes_back_whole(
    hub: TestHub, amesh_server: LocalDevice, by_old: bool, undo: str, is_over: bool
) -> None:
    """With both keys as they were: the old one until its end, and not if that has come."""
    old, new = EphemeralDevice(), EphemeralDevice()
    hub.say(hub.trust(old))
    assert ask(old, new, amesh_server).status_code == 200
    end, key = row(old).revoked_at, old if by_old else new
    hub.say(hub.event("revoke", key, reason="lost"))
    assert status(old) == status(new) == 401 and row(old).revoked_by == row(new).revoked_by == hub.by
    if is_over:
        end = row(old).added_at
        current_list().change(
            "tests",
            lambda pending: pending.update(pending.select(device_id=old.identity.device_id)[0], replaced_until=end),
        )
    if undo == "trust" and not by_old:
        undo = "reinstate"  # the hub has not added the new key
    hub.say(hub.trust(old) if undo == "trust" else hub.event("reinstate", key))
    assert (status(new), status(old)) == (200, 401 if is_over else 200)
    found = row(old)
    assert (found.revoked_at, found.revoked_by, found.revoke_reason) == (end, new.identity.device_id, "rotated")
    assert found.replaced_by == "" and found.replaced_until is None


def test_an_old_key_does_not_come_back_without_the_new_one(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    old, new, people = amesh_trust(), EphemeralDevice(), DatabaseAllowList(by="person")
    assert ask(old, new, amesh_server).status_code == 200
    hub.say(hub.event("revoke", old))
    people.reinstate(new.identity.device_id)
    people.revoke(new.identity.device_id)
    answer = hub.say(hub.event("reinstate", old))
    assert [why for _serial, why in answer.refused] == ["revoked_here"] and status(old) == status(new) == 401


def test_two_hubs_and_both_keys(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    other = TestHub(amesh_server.identity.device_id).trusted("revoke")
    other.greet()
    assert ask(old, new, amesh_server).status_code == 200
    hub.say(hub.event("revoke", old))
    other.say(other.event("revoke", new))
    hub.say(hub.event("reinstate", old))
    assert row(old).revoked_by == row(new).revoked_by == other.by and status(new) == 401
    other.say(other.event("reinstate", new))
    assert status(old) == status(new) == 200 and row(old).revoked_by == new.identity.device_id


def test_the_keys_that_a_device_had_before_are_named_with_it(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """A server that never heard of the rotation knows the device by one of them only. They are not accepted at the hub any more."""
    plain, _itself = add_server()
    enrolled, _other = add_server("https://other.example/amesh/", scope_of_events="enroll", groups=["*"])
    first, purged, last, newest = (EphemeralDevice() for _ in range(4))
    amesh_trust(first)
    for old, new in ((first, purged), (purged, last), (last, newest)):
        assert ask(old, new, amesh_server).status_code == 200
        end_overlap(old)
    trusted, names = DatabaseAllowList(by="tests"), [one.identity.device_id for one in (newest, last, purged, first)]
    trusted.revoke(names[0])  # only then the row of an older key can be purged
    trusted.purge(names[2])
    trusted.reinstate(names[0])
    after = servers.head().revision
    end = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    trusted.suspend(names[:1], until=end, reason="holiday")
    trusted.lift(names[:1])
    trusted.revoke(names[0], reason="stolen")
    trusted.reinstate(names[0])
    found = message(plain, after=after)
    words = ("suspend", "lift", "revoke", "reinstate")
    assert told(found) == [(word, name) for word in words for name in names]
    suspended, revoked = found.events[:4], found.events[8:12]
    assert {one.until for one in suspended} == {suspended[0].until} and suspended[0].until is not None
    assert {(one.serial, one.reason) for one in revoked} == {(revoked[0].serial, "stolen")}
    assert [one.key for one in revoked] == [key_hash(one.identity.public_key) for one in (newest, last, purged, first)]
    # Such a server was told which key replaces which, so the replaced ones do not come back.
    assert told(message(enrolled, after=after))[-5:] == [*[("revoke", name) for name in names], ("reinstate", names[0])]
    trusted.suspend(names[:1])
    found = message(plain, epoch="", after=0)
    assert sorted(told(found)) == sorted(("suspend", name) for name in names)


def test_a_key_that_was_trusted_again_is_none_that_was_replaced(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    plain, _itself = add_server()
    back, purged, new = amesh_trust(), EphemeralDevice(), EphemeralDevice()
    for old, newer in ((back, purged), (purged, new)):
        assert ask(old, newer, amesh_server).status_code == 200
        end_overlap(old)
    trusted = DatabaseAllowList(by="tests")
    trusted.revoke(new.identity.device_id)
    trusted.purge(purged.identity.device_id)
    trusted.reinstate(new.identity.device_id)
    amesh_trust(purged)
    trusted.reinstate(back.identity.device_id)
    after = servers.head().revision
    trusted.revoke(new.identity.device_id)
    assert told(message(plain, after=after)) == [("revoke", new.identity.device_id)]


def test_keys_that_are_too_many_for_a_message_are_in_the_list(
    amesh_trust: Trust, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _itself = add_server()
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    end_overlap(old)
    after = servers.head().revision
    monkeypatch.setattr(feed, "MAX_IN_MESSAGE", 1)
    DatabaseAllowList(by="tests").revoke(new.identity.device_id)
    found = message(plain, after=after)
    assert found.revocations and found.until == found.head


def test_a_revocation_in_a_damaged_list_names_them_too(
    amesh_trust: Trust, amesh_server: LocalDevice, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _itself = add_server()
    first, second, last = amesh_trust(), EphemeralDevice(), EphemeralDevice()
    other = amesh_trust(EphemeralDevice())
    for old, new in ((first, second), (second, last)):
        assert ask(old, new, amesh_server).status_code == 200
        end_overlap(old)
    after = servers.head().revision
    QuerySet(Device).filter(device_id=other.identity.device_id).update(friendly_name="changed with SQL")
    QuerySet(Device).filter(device_id=first.identity.device_id).delete()
    current_list().distrust()
    names = [one.identity.device_id for one in (last, second, first)]
    DatabaseAllowList(by="tests").revoke(names[0], reason="stolen")
    assert told(message(plain, after=after)) == [("revoke", name) for name in names]


def test_a_note_about_a_device_stays_here_and_follows_its_new_key(hub: TestHub) -> None:
    """The hub knows nothing of it, and the device is the same."""
    old, new = EphemeralDevice(), EphemeralDevice()
    hub.say(hub.trust(old))
    DatabaseAllowList(by="anna").set_note(old.identity.device_id, "in the window")
    hub.say(replaced(hub, old, new, serial=9), hub.trust(new, serial=9))
    assert status(new) == 200 and row(new).note == "in the window"
