"""What people of a server have limited holds, whatever a hub says about its devices afterwards."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import HubEntry
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from authmesh.device import LocalDevice
from authmesh.device.grants import Grant
from tests.fleet.hubs import TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db
NOW = timezone.now().replace(microsecond=0)


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke and add devices, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.greet()
    return found


def days(number: int) -> dt.datetime:
    """Return a time that is days from now, as a column holds it."""
    return NOW + dt.timedelta(days=number)


def test_the_end_of_a_suspension_is_not_the_expiry_of_the_key(hub: TestHub) -> None:
    device, name = EphemeralDevice(), ["expires_at", "suspended_until"]
    hub.say(hub.trust(device, expires_at=days(9)), hub.event("suspend", device, until=days(1)))
    assert HubEntry.objects.values_list(*name).get() == (days(9), days(1))
    hub.say(hub.event("revoke", device), hub.event("reinstate", device))
    assert HubEntry.objects.values_list(*name).get() == (days(9), days(1))
    hub.say(hub.event("lift", device))
    assert HubEntry.objects.values_list(*name).get() == (days(9), None)
    # It is still the expiry of the hub, so the hub can put it off.
    hub.say(hub.trust(device, expires_at=days(12)))
    assert row(device).expires_at == days(12) and not DatabaseAllowList().verify().hubs


def again(hub: TestHub, way: str, device: EphemeralDevice, **options: Any) -> list[str]:
    """Let the hub say what the device may do, after it has revoked the device or not. Return what was refused."""
    if way != "update":
        hub.say(hub.event("revoke", device))
        assert row(device).state == "revoked"
    event = hub.trust(device, **options)
    answer = hub.say(dataclasses.replace(event, event="reinstate") if way == "reinstate" else event)
    return [why for _serial, why in answer.refused]


@pytest.mark.parametrize("way", ["update", "reinstate", "trust"])
def test_what_a_person_has_limited_survives(hub: TestHub, settings: Any, way: str) -> None:
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["print", "scan", "rate", "orders:*", "stock:*"]}
    lifecycle.reset()
    device, people = EphemeralDevice(), DatabaseAllowList(by="person")
    name = device.identity.device_id
    given: dict[str, Any] = {
        "permissions": {"print": True, "scan": True, "rate": "100/s"},
        "scopes": ("orders:*", "stock:read", "stock:write"),
    }
    hub.say(hub.trust(device, **given, expires_at=days(90)))
    people.put_group("robots", [])
    people.grant([name], Grant(groups=frozenset({"robots"})))
    scopes = ["orders:read", "stock:write", "mine:x"]
    people.set_permissions(name, {"scan": True, "rate": "1/s", "scopes": scopes})
    people.set_expiry([name], days(10))
    for number in (1, 2):  # the second time, the word of the hub has to tell
        assert again(hub, way, device, **given, expires_at=days(90 + number)) == []
        found = row(device)
        assert (found.state, found.expires_at, found.groups) == ("active", days(10), ["robots"])
        assert found.permissions == {"scan": True, "rate": "1/s", "scopes": sorted(scopes)}
    # What covers a scope that was taken is not given either, nor a part of it. What the hub gave itself, it takes back.
    again(hub, way, device, scopes=("stock:*", "orders:write", "orders:read"), expires_at=days(5))
    found = row(device)
    assert found.expires_at == days(5)
    assert found.permissions == {"rate": "1/s", "scopes": ["mine:x", "orders:read"]}
    again(hub, way, device, **given)
    assert row(device).expires_at == days(10)  # the limit of the person, and not that of the hub before
    people.set_expiry([name], None)
    again(hub, way, device, **given, expires_at=days(30))
    assert row(device).expires_at == days(30) and row(device).permissions["scan"] is True
    assert not people.verify().hubs


@pytest.mark.parametrize("way", ["reinstate", "trust"])
def test_a_device_that_a_person_denied_stays_denied(hub: TestHub, settings: Any, way: str) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}
    lifecycle.reset()
    device = EphemeralDevice()
    assert [why for _serial, why in hub.say(hub.trust(device)).refused] == ["pending"]
    DatabaseAllowList(by="person").deny([device.identity.device_id])
    again(hub, way, device)
    assert row(device).denied_by == "person" and status(device) == 401


def test_a_key_does_not_become_younger_by_being_revoked(hub: TestHub, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "MAX_KEY_AGE_DAYS": 30}
    lifecycle.reset()
    device = EphemeralDevice()
    hub.say(hub.trust(device))
    added = days(0) - dt.timedelta(days=20)

    def age(pending: Change) -> None:
        pending.update(pending.select(device_id=device.identity.device_id)[0], added_at=added)

    current_list().change("tests", age)
    again(hub, "trust", device)
    assert row(device).expires_at == added + dt.timedelta(days=30)
