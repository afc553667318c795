"""Keys that were replaced: what a hub says about them, and what that means at a server."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import signed_list
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
    trusted.purge(old.identity.device_id)
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
