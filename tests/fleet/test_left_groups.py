"""Devices that have left the groups of a server: what the hub says about them, and what that means at the server."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import pytest
from django.utils import timezone

from amesh_django.enrollment import rotating
from amesh_django.fleet import servers
from amesh_django.models import Device, HubEntry
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from authmesh.device.grants import Grant
from authmesh.protocol.fleet.feed import FeedMessage
from authmesh.protocol.rotation import build_rotation
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, row, status
from tests.fleet.servers import add_server, hub, laptops, message, told

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.usefixtures("db", "amesh_server")


# --- at the hub ---


def test_who_has_left_the_groups_of_a_server_is_named_after_a_list(settings: object) -> None:
    """By the hash of the key only. A server that was away must not accept these devices for ever."""
    hub().put_group("shop", ["orders:read"])
    one, left, away, waiting, back, never = (device.identity.device_id for device in laptops(6))
    in_shop = Grant(groups=frozenset({"shop"}))
    hub().grant([one, left, away, back], in_shop)
    server, _itself = add_server(scope_of_events="enroll", groups=["shop"])
    other, _other = add_server("https://other.example/amesh/", scope_of_events="enroll", groups=["*"])
    plain, _third = add_server("https://third.example/amesh/")
    hub().suspend([away], reason="holiday")
    hub().revoke_all([waiting])
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}  # type: ignore[attr-defined]
    hub().add(next(row.to_entry() for row in Device.objects.filter(device_id=waiting)))
    after = servers.head().revision
    hub().revoke_all([back])
    hub().grant([left, away], Grant(), taken=in_shop)
    hub().remove_group("shop")
    hub().put_group("shop", [])
    hub().grant([one], in_shop)
    hub().reinstate(back)
    found = message(server, epoch="", after=0)
    events = {event.device_id: event for event in found.events}
    assert {(event.event, name, event.left) for name, event in events.items()} == {
        ("trust", one, False),
        ("revoke", left, True),
        ("suspend", away, True),
        ("revoke", waiting, True),
        ("revoke", back, True),
        ("revoke", never, True),
    }
    assert events[left].reason == "left_group" and events[left].trusted is None
    assert events[away].reason == "holiday"
    assert abs((timezone.now() - events[left].at).total_seconds()) < 60
    assert {event.device_id: event.left for event in FeedMessage.from_json(found.to_json()).events} == {
        name: event.left for name, event in events.items()
    }
    assert [event.device_id for event in message(other, epoch="", after=0).events if event.left] == [waiting]
    assert told(message(plain, epoch="", after=0)) == [("suspend", away)]
    # Without a gap, a device that comes back is not of its groups, either.
    assert [(event.event, event.left) for event in message(server, after=after).events if event.device_id == back] == [
        ("revoke", False),
        ("reinstate", True),
    ]


def test_a_replaced_key_and_a_controller_that_became_a_target_have_left_too(amesh_server: LocalDevice) -> None:
    hub().put_group("shop", [])
    server, itself = add_server(scope_of_events="enroll", groups=["shop"])
    old, other = laptops(2)
    new = EphemeralDevice()
    now = time.time()
    request = build_rotation(
        old_device_id=old.identity.device_id,
        new_public_key=new.identity.public_key,
        audience=amesh_server.identity.device_id,
        now=int(now),
        sign=new.sign,
    )
    rotating.rotate(request, public_key=old.identity.public_key, now=now)
    hub().revoke_all([other.identity.device_id])
    hub().add(other.entry("target"))
    found = message(server, epoch="", after=0)
    assert {event.device_id for event in found.events if event.left} == {
        one.identity.device_id for one in (old, new, other)
    }
    assert itself.identity.device_id not in {name for _event, name in told(found)}


# --- at a server ---


@pytest.fixture
def enroller(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may also add devices."""
    found = TestHub(amesh_server.identity.device_id).trusted("enroll")
    found.greet()
    return found


@pytest.mark.parametrize("word", ["revoke", "suspend", "lift", "reinstate"])
def test_only_a_device_that_the_hub_has_added_is_revoked(enroller: TestHub, amesh_trust: Trust, word: str) -> None:
    added, unknown, known = EphemeralDevice(), EphemeralDevice(), amesh_trust()
    enroller.say(enroller.trust(added))
    assert status(added) == 200
    reason = "left_group" if word == "revoke" else ""
    answer = enroller.say(*[enroller.event(word, one, reason=reason, left=True) for one in (added, unknown, known)])
    assert not answer.refused and answer.applied == 4
    assert (row(added).state, row(added).revoked_by, row(added).revoke_reason) == ("revoked", enroller.by, "left_group")
    assert status(known) == (401 if word == "suspend" else 200)
    noted = {entry.device_id for entry in HubEntry.objects.all()}
    names = {one.identity.device_id for one in (added, unknown, known)}
    assert noted == ({added.identity.device_id} if word == "revoke" else names)
    enroller.say(enroller.event("reinstate", added, left=True))
    assert status(added) == 401
    enroller.say(enroller.trust(added))
    assert status(added) == 200  # it is in a group of the server again


def test_the_words_left_group_of_a_person_are_an_ordinary_reason(enroller: TestHub, amesh_trust: Trust) -> None:
    known = amesh_trust()
    enroller.say(enroller.event("revoke", known, reason="left_group"))
    assert status(known) == 401


def test_a_device_that_has_replaced_its_key_here_leaves_too(enroller: TestHub, amesh_server: LocalDevice) -> None:
    added, new = EphemeralDevice(), EphemeralDevice()
    enroller.say(enroller.trust(added))
    assert ask(added, new, amesh_server).status_code == 200
    enroller.say(enroller.event("revoke", new, reason="left_group", left=True))
    assert status(new) == status(added) == 401


def test_a_device_that_a_person_has_taken_over_stays(enroller: TestHub, amesh_trust: Trust) -> None:
    added = EphemeralDevice()
    enroller.say(enroller.trust(added))
    amesh_trust(added)
    end = dt.datetime.now(dt.UTC)
    enroller.say(enroller.event("revoke", added, reason="left_group", left=True, at=end))
    assert status(added) == 200
