"""What people of a server have limited holds, whatever a hub says about its devices afterwards."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import HubEntry
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from tests.fleet.hubs import TestHub, row

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke and add devices, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.greet()
    return found


def days(number: int) -> dt.datetime:
    """Return a time as a column holds it."""
    return (timezone.now() + dt.timedelta(days=number)).replace(microsecond=0)


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
