"""``manage.py amesh_hubs``: which hubs speak at this server, and how far it has come."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django.fleet import overview
from amesh_django.models import Hub
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import LocalDevice
from tests.commands.test_management import call
from tests.fleet.hubs import TestHub

pytestmark = pytest.mark.django_db


def listed() -> list[dict[str, Any]]:
    done = call("hubs", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["hubs"]
    return found


def test_each_state(amesh_server: LocalDevice, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    laptop = amesh_trust(EphemeralDevice("laptop"))
    assert listed() == [] and "amesh_grant DEVICE --permission revoke" in call("hubs").out
    hub = TestHub(amesh_server.identity.device_id).trusted()
    granted = call("grant", hub.id, "--permission", "revoke")
    assert "As a hub, it may now revoke and suspend devices here." in granted.out
    assert "amesh_hubs" in granted.out and "amesh_hubs" not in call("grant", hub.id, "--permission", "other").out
    (shown,) = listed()
    assert (shown["state"], shown["permissions"], shown["lastContact"]) == ("not_heard", ["revoke"], None)
    hub.greet()
    hub.say(hub.event("revoke", laptop))
    (shown,) = listed()
    assert (shown["state"], shown["applied"], shown["head"], shown["words"]) == ("heard", 1, 1, 1)
    text = call("hubs").out
    assert "[heard]" in text and "may revoke" in text and "applied 1 of 1, has said something about 1 key" in text
    assert overview.hubs(timezone.now() + dt.timedelta(seconds=91))[0].state == "silent"
    assert call("grant", hub.id, "--permission", "revoke", "--remove").code == 0
    assert listed()[0]["state"] == "not_allowed" and "no permission here any more" in call("hubs").out
    Hub.objects.update(applied=7)
    assert listed()[0]["state"] == "changed"
