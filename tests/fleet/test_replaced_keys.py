"""Keys that were replaced: what a hub says about them, and what that means at a server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, status

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
