"""A person of the server and each hub suspend a device independently: it is accepted when all of that has ended or was lifted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from django.utils import timezone

from amesh_django.admin.shown import details
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.management.home import _decided
from amesh_django.models import HubEntry
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db
NOW = timezone.now().replace(microsecond=0)
SOON, LATER = (NOW + dt.timedelta(hours=number) for number in (1, 2))


@pytest.fixture
def hubs(amesh_server: LocalDevice, db: None) -> list[TestHub]:
    """Two hubs that may revoke, and whose lists the server knows."""
    found = [TestHub(amesh_server.identity.device_id).trusted("revoke") for _ in range(2)]
    for hub in found:
        hub.greet()
    return found


class Author:
    """A person or a hub that suspends devices."""

    def __init__(self, hub: TestHub | None) -> None:
        self.hub, self.name = hub, hub.by if hub is not None else "person"

    def suspend(self, device: EphemeralDevice, until: dt.datetime | None) -> None:
        if self.hub is not None:
            assert not self.hub.say(self.hub.event("suspend", device, until=until, reason=self.name[:6])).refused
        else:
            DatabaseAllowList(by="person").suspend([device.identity.device_id], until=until, reason="person")

    def lift(self, device: EphemeralDevice) -> None:
        if self.hub is not None:
            self.hub.say(self.hub.event("lift", device))
        else:
            DatabaseAllowList(by="person").lift([device.identity.device_id])


@pytest.mark.parametrize("ends", [(SOON, None), (None, SOON), (SOON, LATER), (LATER, SOON), (None, None)])
@pytest.mark.parametrize("pair", ["person hub", "hub person", "hub other"])
def test_who_lifts_leaves_the_other_suspension(
    hubs: list[TestHub], amesh_trust: Trust, pair: str, ends: tuple[dt.datetime | None, dt.datetime | None]
) -> None:
    device = amesh_trust()
    by_name = {"person": Author(None), "hub": Author(hubs[0]), "other": Author(hubs[1])}
    authors = [by_name[name] for name in pair.split()]
    for gone in (0, 1):
        for author, end in zip(authors, ends, strict=True):
            author.suspend(device, end)
        assert status(device) == 401
        longest = None if None in ends else max(ends)  # type: ignore[type-var]
        assert row(device).suspended_until == longest
        authors[gone].lift(device)
        found, left = row(device), authors[1 - gone]
        assert (found.state, found.suspended_until, found.suspended_by) == ("suspended", ends[1 - gone], left.name)
        assert found.suspend_reason == left.name[:6] and found.kept_until is None and found.kept_by == ""
        left.lift(device)
        assert row(device).suspended_at is None and status(device) == 200
    assert not DatabaseAllowList().verify().hubs


def test_a_hub_is_told_that_the_device_stays_suspended(hubs: list[TestHub], amesh_trust: Trust) -> None:
    device, (hub, other) = amesh_trust(), hubs
    person, refused = Author(None), [(2, "suspended_here")]
    person.suspend(device, SOON)
    hub.say(hub.event("suspend", device))
    assert (row(device).kept_until, row(device).kept_by, row(device).kept_reason) == (SOON, "person", "person")
    assert "also by person until" in _decided(row(device)) and "Also suspended until" in details(row(device))
    assert hub.say(hub.event("lift", device)).refused == refused
    other.say(other.event("suspend", device))
    person.lift(device)
    assert row(device).suspended_by == other.by
    person.lift(device)  # in spite of the hub
    assert status(device) == 200 and not HubEntry.objects.filter(suspended=True).exists()
    assert other.say(other.event("lift", device)).refused == []


def test_a_suspension_that_has_ended_holds_nothing(hubs: list[TestHub], amesh_trust: Trust) -> None:
    """Neither the person's, beside that of the hub, nor one that the hub ended in the past."""
    device, hub = amesh_trust(), hubs[0]
    Author(None).suspend(device, SOON)
    hub.say(hub.event("suspend", device))
    ended = timezone.now() - dt.timedelta(seconds=1)
    name = device.identity.device_id
    current_list().change("tests", lambda pending: pending.update(pending.select(device_id=name)[0], kept_until=ended))
    assert hub.say(hub.event("lift", device)).refused == [] and status(device) == 200
    hub.say(hub.event("suspend", device))
    assert status(device) == 401
    hub.say(hub.event("suspend", device, until=ended))
    assert status(device) == 200 and row(device).suspended_at is None


@pytest.mark.parametrize("by", ["person", "hub"])
def test_who_reinstates_does_not_lift(hubs: list[TestHub], amesh_trust: Trust, by: str) -> None:
    """Also a suspension that came while the device was revoked."""
    device, (hub, other) = amesh_trust(), hubs
    hub.say(hub.event("suspend", device, until=SOON), hub.event("revoke", device))
    other.say(other.event("suspend", device, until=LATER))
    if by == "hub":
        hub.say(hub.event("reinstate", device))
    else:
        DatabaseAllowList(by="person").reinstate(device.identity.device_id)
    assert (row(device).state, row(device).suspended_until) == ("suspended", LATER)
    other.say(other.event("lift", device))
    assert (row(device).state, row(device).suspended_until) == ("suspended", SOON)
    hub.say(hub.event("lift", device))
    assert status(device) == 200


def test_both_keys_of_a_device(hubs: list[TestHub], amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new, hub = amesh_trust(), EphemeralDevice(), hubs[0]
    assert ask(old, new, amesh_server).status_code == 200
    hub.say(hub.event("suspend", old))
    Author(None).suspend(new, SOON)
    Author(None).lift(new)
    assert row(old).suspended_by == row(new).suspended_by == hub.by
    Author(None).suspend(new, SOON)
    hub.say(hub.event("lift", old))
    assert row(old).suspended_by == row(new).suspended_by == "person" and status(old) == status(new) == 401
    Author(None).lift(new)
    assert status(old) == status(new) == 200


def test_damage_lifts_nothing(hubs: list[TestHub], amesh_trust: Trust) -> None:
    """The row of the device says what holds, also if the word of the hub is gone."""
    device, (hub, other) = amesh_trust(), hubs
    hub.say(hub.event("suspend", device))
    other.say(other.event("suspend", device, until=SOON))
    Author(None).suspend(device, SOON)
    HubEntry.objects.filter(hub=hub.id).delete()
    other.say(other.event("lift", device))
    Author(None).lift(device)
    assert row(device).suspended_by == hub.by and row(device).suspended_until is None
    assert DatabaseAllowList().verify().hubs
