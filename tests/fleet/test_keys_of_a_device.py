"""What was decided about one key of a device holds for those that it has replaced and those that replace it, here or at a hub."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from authmesh.protocol.errors import DeviceNotFound
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, row, status
from tests.fleet.test_replaced_keys import end_overlap, replaced

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db
TOMORROW = timezone.now().replace(microsecond=0) + dt.timedelta(days=1)


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.greet()
    return found


@pytest.fixture
def other(amesh_server: LocalDevice, db: None) -> TestHub:
    """A second hub, which adds no devices."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.greet()
    return found


@pytest.fixture
def people(db: None) -> DatabaseAllowList:
    return DatabaseAllowList(by="person")


def rotate_at(hub: TestHub, old: EphemeralDevice, new: EphemeralDevice, **rights: Any) -> list[str]:
    """Replace a key at the hub. Return what was refused."""
    serial = hub.sent + 1
    next(hub._serials)
    said = hub.say(replaced(hub, old, new, serial=serial), hub.trust(new, serial, **rights))
    return [why for _serial, why in said.refused]


@pytest.mark.parametrize("what", ["suspend", "revoke", "deny"])
def test_a_rotation_at_the_hub_escapes_no_decision(
    hub: TestHub, people: DatabaseAllowList, settings: Any, what: str
) -> None:
    old, new = EphemeralDevice(), EphemeralDevice()
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": what == "deny"}
    lifecycle.reset()
    hub.say(hub.trust(old))
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": False}
    lifecycle.reset()
    if what == "suspend":
        people.suspend([old.identity.device_id])
    elif what == "revoke":
        people.revoke(old.identity.device_id)
    else:
        people.deny([old.identity.device_id])
    expected = {"suspend": [], "revoke": ["revoked_here"], "deny": ["key_denied"]}[what]
    assert rotate_at(hub, old, new) == expected and status(new) == 401


def test_a_rotation_at_the_hub_keeps_what_people_have_limited(
    hub: TestHub, people: DatabaseAllowList, settings: Any
) -> None:
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["print", "orders:*"]}
    lifecycle.reset()
    old, new = EphemeralDevice(), EphemeralDevice()
    rights: dict[str, Any] = {"permissions": {"print": True}, "scopes": ("orders:write",)}
    hub.say(hub.trust(old, **rights))
    people.set_permissions(old.identity.device_id, {})
    people.set_expiry([old.identity.device_id], TOMORROW)
    assert rotate_at(hub, old, new, **rights, expires_at=TOMORROW + dt.timedelta(days=90)) == []
    assert (row(new).permissions, row(new).expires_at, status(new)) == ({}, TOMORROW, 200)
    hub.say(hub.trust(new, **rights))
    assert row(new).permissions == {}


def test_a_hub_adds_no_second_key_of_a_device_that_is_not_its_own(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    """The device replaces its key here by itself."""
    old, new = amesh_trust(), EphemeralDevice()
    assert rotate_at(hub, old, new) == ["known_here", "known_here"]
    assert ask(old, new, amesh_server).status_code == 200 and status(new) == 200


def test_revoking_in_the_overlap_keeps_the_keys_together(
    other: TestHub, people: DatabaseAllowList, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    end, names = row(old).revoked_at, [one.identity.device_id for one in (old, new)]
    people.revoke(names[0])
    people.reinstate(names[1])
    with pytest.raises(Exception, match="was replaced by"):
        people.purge(names[0])
    other.say(other.event("revoke", old))  # which knows the old key only
    assert status(new) == 401
    people.reinstate(names[0])
    people.reinstate(names[1])
    assert row(old).revoked_at == end and status(old) == status(new) == 200
    people.suspend([names[1]])
    assert status(old) == status(new) == 401


def test_a_hub_that_was_revoked_in_its_overlap_undoes_what_its_old_key_did(
    other: TestHub, people: DatabaseAllowList, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    device = amesh_trust()
    other.say(other.event("revoke", device))
    old, other.device = other.device, EphemeralDevice("hub")
    assert ask(old, other.device, amesh_server).status_code == 200
    people.revoke(other.id)
    people.reinstate(other.id)
    assert not other.say(other.event("reinstate", device)).refused and status(device) == 200


@pytest.mark.parametrize("undo", ["reinstate", "trust", "lift"])
def test_what_another_hub_says_of_an_older_key_counts(
    hub: TestHub, other: TestHub, amesh_trust: Trust, amesh_server: LocalDevice, undo: str
) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    end_overlap(old)
    what = "suspend" if undo == "lift" else "revoke"
    hub.say(hub.event(what, new))
    other.say(other.event(what, old))
    hub.say(hub.trust(new) if undo == "trust" else hub.event(undo, new))
    assert status(new) == 401
    other.say(other.event("lift" if undo == "lift" else "reinstate", old))
    if undo != "trust":
        assert status(new) == 200


def test_a_rotation_that_a_hub_carried_is_no_revocation_of_the_device(hub: TestHub, other: TestHub) -> None:
    old, new = EphemeralDevice(), EphemeralDevice()
    hub.say(hub.trust(old))
    assert rotate_at(hub, old, new) == [] and status(new) == status(old) == 200
    end_overlap(old)
    other.say(other.event("revoke", old))
    assert status(new) == 401
    other.say(other.event("reinstate", old))
    assert status(new) == 200 and status(old) == 401


def test_a_key_that_a_hub_has_suspended_before_enters_suspended(
    other: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    """With no person who decides: by a token, an import, or a rotation."""
    added, imported, rotated = EphemeralDevice(), EphemeralDevice(), EphemeralDevice()
    other.say(*[other.event("suspend", one) for one in (added, imported, rotated)])
    program = DatabaseAllowList(by="program", attended=False)
    program.add(added.entry())
    program.add_all([imported.entry()])
    assert ask(amesh_trust(), rotated, amesh_server).status_code == 200
    assert [status(one) for one in (added, imported, rotated)] == [401] * 3
    other.say(*[other.event("lift", one) for one in (added, imported, rotated)])
    assert [status(one) for one in (added, imported, rotated)] == [200] * 3


def test_a_device_that_left_its_group_while_suspended_comes_back(hub: TestHub) -> None:
    device = EphemeralDevice()
    hub.say(hub.trust(device), hub.event("suspend", device))
    hub.say(hub.event("revoke", device, left=True, reason="left_group"))
    hub.say(dataclasses.replace(hub.trust(device), event="lift"))
    assert status(device) == 200


def test_a_person_revokes_what_a_hub_has_revoked(hub: TestHub, people: DatabaseAllowList, amesh_trust: Trust) -> None:
    device = amesh_trust()
    hub.say(hub.event("revoke", device))
    people.revoke(device.identity.device_id, reason="stolen")
    assert [why for _serial, why in hub.say(hub.event("reinstate", device)).refused] == ["revoked_here"]
    found = Device.objects.get(device_id=device.identity.device_id)
    assert (found.revoked_by, found.revoke_reason, status(device)) == ("person", "stolen", 401)
    with pytest.raises(DeviceNotFound):
        people.revoke(device.identity.device_id)


def test_a_decision_counts_in_another_epoch_too(hub: TestHub, people: DatabaseAllowList, amesh_trust: Trust) -> None:
    device = amesh_trust()
    revoked = hub.event("revoke", device)
    hub.say(revoked)
    hub.say(hub.event("reinstate", device))
    people.add(device.entry())
    hub.epoch, hub.sent = "f" * 32, 0
    hub.greet({device: 3}, at=revoked.at, until=3, head=3)
    assert status(device) == 200
