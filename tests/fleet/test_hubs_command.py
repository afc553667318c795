"""``manage.py amesh_hubs``: which hubs speak at this server, and how far it has come."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions.hubs import KeyRevokedByHub
from amesh_django.fleet import overview
from amesh_django.models import AuditEvent, Hub, HubEntry
from amesh_django.spelling import manage_py
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import LocalDevice
from tests.commands.test_management import call
from tests.fleet.hubs import TestHub, row, status

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


def test_what_a_former_hub_has_said_counts_until_a_person_decides(
    amesh_server: LocalDevice, amesh_trust: Callable[..., EphemeralDevice]
) -> None:
    """One key by trusting it, and all by forgetting the hub. What it has revoked stays revoked."""
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    revoked, unknown, other = amesh_trust(), EphemeralDevice(), EphemeralDevice()
    hub.greet()
    hub.say(*(hub.event("revoke", device) for device in (revoked, unknown, other)))
    refused = call("hubs", "forget", hub.id, "--yes")
    assert refused.code == 1 and "is a hub of this server" in refused.err
    assert f"amesh_grant {hub.id} --permission revoke --permission enroll --remove" in refused.err

    DatabaseAllowList(by="person").revoke(hub.id)
    DatabaseAllowList(by="person").purge(hub.id)
    text = " ".join(call("hubs").out.split())
    assert "what it has said still counts" in text and f"amesh_hubs forget {hub.id}" in text
    with pytest.raises(KeyRevokedByHub) as caught:
        DatabaseAllowList(by="bootstrap", attended=False).add(unknown.entry())
    assert hub.id in str(caught.value) and "amesh_hubs forget HUB" in caught.value.text(manage_py)
    DatabaseAllowList(by="person").add(unknown.entry())
    assert status(unknown) == 200

    assert call("hubs", "forget", hub.id, "--no-input").code != 0
    done = call("hubs", "forget", hub.id, "--yes")
    assert (done.code, "about 3 keys was removed" in done.out) == (0, True) and listed() == []
    DatabaseAllowList(by="bootstrap", attended=False).add(other.entry())
    assert [status(device) for device in (unknown, other, revoked)] == [200, 200, 401]
    assert row(revoked).revoked_by == hub.by
    event = AuditEvent.objects.get(kind="hub_forgotten")
    assert hub.id in event.data and event.revision
    assert call("audit", "--verify").code == 0 and call("integrity").code == 0
    assert call("hubs", "forget", hub.id, "--yes").code == 1 and call("hubs", "forget").code == 2


def test_another_hub_is_not_held_back_by_a_hub_that_was_forgotten(
    amesh_server: LocalDevice, amesh_trust: Callable[..., EphemeralDevice]
) -> None:
    first, second = (TestHub(amesh_server.identity.device_id).trusted("revoke") for _ in range(2))
    devices = [amesh_trust() for _ in range(2)]
    for one in (first, second):
        one.greet()
    for device in devices:
        second.say(second.event("revoke", device))
        first.say(first.event("revoke", device))
    call("grant", first.id, "--permission", "revoke", "--remove")
    second.say(second.event("reinstate", devices[0]))
    assert (status(devices[0]), row(devices[0]).revoked_by) == (401, first.by)
    assert call("hubs", "forget", first.id, "--yes").code == 0
    second.say(second.event("reinstate", devices[1]))
    assert [status(device) for device in devices] == [401, 200]


def test_words_that_were_changed_are_not_forgotten(amesh_server: LocalDevice) -> None:
    """Otherwise nobody would learn of the damage."""
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    hub.greet()
    hub.say(hub.event("revoke", EphemeralDevice()))
    call("grant", hub.id, "--permission", "revoke", "--remove")
    HubEntry.objects.update(event="lift")
    refused = call("hubs", "forget", hub.id, "--yes")
    assert refused.code == 1 and "amesh_integrity --reseal" in refused.err and HubEntry.objects.count() == 1
