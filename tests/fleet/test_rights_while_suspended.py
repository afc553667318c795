"""Rights that change while a device is suspended: the servers know them before the suspension ends by itself."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import servers
from amesh_django.models import HubEntry
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from authmesh.device.grants import NOTHING, Grant
from authmesh.protocol.fleet.events import FeedEvent
from authmesh.protocol.fleet.feed import FeedMessage
from tests.fleet.hubs import TestHub, row, status
from tests.fleet.servers import add_server, hub, laptops, message, told

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.usefixtures("db", "amesh_server")
SOON = timezone.now().replace(microsecond=0) + dt.timedelta(hours=1)
WIDE = Grant(["print"], ["orders:write"], ["shop", "spare"])


def grant(**names: str) -> Grant:
    return Grant(**{name: [one] for name, one in names.items()})


# --- at the hub ---

CHANGES: dict[str, Callable[[str], Any]] = {
    "permission": lambda name: hub().grant([name], NOTHING, taken=grant(permissions="print")),
    "scope": lambda name: hub().grant([name], NOTHING, taken=grant(scopes="orders:write")),
    "group": lambda name: hub().grant([name], NOTHING, taken=grant(groups="spare")),
    "scopes of a group": lambda name: hub().put_group("spare", []),
    "group is removed": lambda name: hub().remove_group("spare"),
    "expiry": lambda name: hub().set_expiry([name], SOON),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_said_at_once(settings: Any, change: str) -> None:
    settings.AMESH = {**settings.AMESH, "PERMISSIONS": {"print": "Print."}}
    lifecycle.reset()
    hub().put_group("shop", [])
    hub().put_group("spare", ["stock:read"])
    server, _itself = add_server(scope_of_events="enroll", groups=["shop"])
    plain, _other = add_server("https://other.example/amesh/")
    (name,) = (device.identity.device_id for device in laptops(1))
    hub().grant([name], WIDE)
    after = servers.head().revision
    hub().suspend([name], until=SOON, reason="holiday")
    CHANGES[change](name)
    first, last = FeedMessage.from_json(message(server, after=after).to_json()).events
    assert (first.event, first.reason, first.until, first.left, first.still) == (
        "suspend",
        "holiday",
        SOON,
        False,
        False,
    )
    assert first.trusted is not None and first.trusted.expires_at is None
    assert first.trusted.permissions == {"print": True} and "orders:write" in first.trusted.scopes
    assert (last.event, last.reason, last.until, last.left, last.still) == ("suspend", "holiday", SOON, False, True)
    found = last.trusted
    assert found is not None
    assert found.permissions == ({} if change == "permission" else {"print": True})
    lost = {"scope": "orders:write", "permission": None, "expiry": None}.get(change, "stock:read")
    assert {*found.scopes} == {"orders:write", "stock:read"} - {lost}
    assert found.expires_at == (SOON if change == "expiry" else None)
    # What a reseal makes of the row says the same, and a server that is told of revocations only hears nothing of it.
    (again,) = message(server, epoch="", after=0).events
    assert (again.event, again.trusted, again.still) == ("suspend", found, False)
    (alone,) = message(plain, after=after).events
    assert (alone.event, alone.trusted) == ("suspend", None)


def test_who_leaves_the_groups_while_suspended_is_revoked_and_comes_back_suspended() -> None:
    hub().put_group("shop", [])
    server, _itself = add_server(scope_of_events="enroll", groups=["shop"])
    (name,) = (device.identity.device_id for device in laptops(1))
    hub().grant([name], grant(groups="shop"))
    after = servers.head().revision
    hub().suspend([name], until=SOON)
    hub().grant([name], NOTHING, taken=grant(groups="shop"))
    hub().suspend([name])
    hub().grant([name], grant(groups="shop"))
    found = message(server, after=after).events
    assert [(one.event, one.left, one.trusted is not None) for one in found] == [
        ("suspend", False, True),
        ("revoke", True, False),
        ("suspend", True, False),
        ("suspend", False, True),
    ]


# --- at a server ---


@pytest.fixture
def enroller(amesh_server: LocalDevice, settings: Any) -> TestHub:
    """A hub that may add devices and grant two scopes."""
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["print", "orders:read", "orders:write"]}
    lifecycle.reset()
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.greet()
    return found


def suspended(by: TestHub, device: EphemeralDevice, *scopes: str, still: bool = False, **options: Any) -> FeedEvent:
    """What the hub says about a suspended device with these scopes."""
    found = by.trust(device, scopes=scopes)
    return dataclasses.replace(found, event="suspend", still=still, **options)


def scopes(device: EphemeralDevice) -> list[str]:
    return list(row(device).permissions.get("scopes", []))


def test_the_rights_are_there_when_the_suspension_ends(enroller: TestHub) -> None:
    device, past = EphemeralDevice(), timezone.now() - dt.timedelta(seconds=1)
    enroller.say(enroller.trust(device, scopes=("orders:read", "orders:write")))
    enroller.say(suspended(enroller, device, "orders:read", "orders:write", until=SOON))
    assert (status(device), scopes(device)) == (401, ["orders:read", "orders:write"])
    enroller.say(suspended(enroller, device, "orders:read", until=SOON, still=True))
    assert (status(device), scopes(device), row(device).suspended_until) == (401, ["orders:read"], SOON)
    enroller.say(suspended(enroller, device, "orders:write", until=past, still=True))
    assert (status(device), scopes(device)) == (200, ["orders:write"])
    assert not DatabaseAllowList().verify().hubs


def test_no_limit_of_the_server_stops_the_suspension(enroller: TestHub, amesh_trust: Trust) -> None:
    """And the event lets nobody in: neither a key that is not known here, nor one that the hub has not added."""
    device, known, unknown = EphemeralDevice(), amesh_trust(), EphemeralDevice()
    enroller.say(enroller.trust(device, scopes=("orders:read",)))
    found = enroller.say(suspended(enroller, device, "all:*"), suspended(enroller, known, "orders:read"))
    assert found.refused == [(2, "may_not_grant")]
    assert (row(device).state, scopes(device), row(known).state, scopes(known)) == (
        "suspended",
        ["orders:read"],
        "suspended",
        [],
    )
    assert enroller.say(suspended(enroller, unknown, "orders:read")).refused == []
    assert HubEntry.objects.get(device_id=unknown.identity.device_id).suspended and status(unknown) == 401


def test_a_replaced_key_does_not_wait_for_a_suspended_one(enroller: TestHub) -> None:
    """A key is valid for a while after it was replaced only if the new one is trusted by the same message."""
    old, new = EphemeralDevice(), EphemeralDevice()
    enroller.say(enroller.trust(old))
    replaced = enroller.event("revoke", old, 2, effective_at=SOON, successor=new.identity.device_id)
    enroller.say(replaced, dataclasses.replace(suspended(enroller, new), serial=2))
    assert (row(old).state, status(old)) == ("revoked", 401)


def test_other_rights_do_not_undo_that_a_person_here_has_lifted(enroller: TestHub) -> None:
    """A new suspension does."""
    device, people = EphemeralDevice(), DatabaseAllowList(by="person")
    enroller.say(enroller.trust(device, scopes=("orders:read", "orders:write")))
    enroller.say(suspended(enroller, device, "orders:read", "orders:write", until=SOON))
    people.lift([device.identity.device_id])
    for one in ("orders:read", "orders:write"):
        enroller.say(suspended(enroller, device, one, until=SOON, still=True))
        assert (status(device), scopes(device)) == (200, [one])
    enroller.say(suspended(enroller, device, until=SOON))
    assert (status(device), scopes(device)) == (401, [])


def test_a_device_that_leaves_while_suspended_stays_suspended_when_it_is_back(enroller: TestHub) -> None:
    device = EphemeralDevice()
    enroller.say(enroller.trust(device))
    enroller.say(enroller.event("suspend", device, until=SOON, left=True))
    assert (row(device).state, HubEntry.objects.get().suspended) == ("revoked", True)
    enroller.say(suspended(enroller, device, "orders:read", until=SOON, still=True))
    assert status(device) == 401
    enroller.say(dataclasses.replace(enroller.trust(device), event="lift"))
    assert status(device) == 200


def test_a_message_of_an_older_hub_says_no_rights(enroller: TestHub) -> None:
    device = EphemeralDevice()
    enroller.say(enroller.trust(device, scopes=("orders:read",)))
    enroller.say(enroller.event("suspend", device))
    assert (row(device).state, scopes(device)) == ("suspended", ["orders:read"])
    assert told(enroller.message(enroller.event("suspend", device))) == [("suspend", device.identity.device_id)]
