"""The metrics of a hub and of a server of one."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import delivery, servers, sweeping
from amesh_django.models import AuditEvent, Hub, Server
from amesh_django.test.devices import EphemeralDevice
from tests.app.test_metrics import counted  # noqa: F401 -- a fixture
from tests.fleet.hubs import TestHub
from tests.fleet.peers import peer

pytestmark = pytest.mark.django_db


def add(trust: Callable[..., EphemeralDevice], name: str) -> Server:
    device = trust(EphemeralDevice(name), "target")
    return servers.add(device.identity.device_id, f"https://{name}.example/amesh/")


def test_a_hub(counted: Callable[[], dict[str, float]], amesh_trust: Callable[..., EphemeralDevice]) -> None:  # noqa: F811
    found = counted()
    assert (found["amesh_fleet_dirty_servers"], found["amesh_fleet_undelivered_seconds"]) == (0, 0)
    assert "amesh_fleet_sweep_age_seconds" not in found and "amesh_fleet_hub_silent_seconds" not in found
    add(amesh_trust, "api"), add(amesh_trust, "paused")
    servers.pause(Server.objects.get(url__contains="paused").device_id)
    sweeping.sweep(ring=lambda pk: None, now=time.time() - 50)
    old = timezone.now() - dt.timedelta(seconds=70)
    AuditEvent.objects.update(at=old)
    Server.objects.update(added_at=old)
    found = counted()
    assert (found["amesh_fleet_servers waiting"], found["amesh_fleet_servers paused"]) == (1, 1)
    assert found["amesh_fleet_dirty_servers"] == 1  # who is paused lacks changes on purpose
    assert 70 <= found["amesh_fleet_undelivered_seconds"] < 100
    assert 50 <= found["amesh_fleet_sweep_age_seconds"] < 80


def test_a_server_of_a_hub(counted: Callable[[], dict[str, float]], amesh_server: Any) -> None:  # noqa: F811
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    hub.greet()
    assert 0 <= counted()["amesh_fleet_hub_silent_seconds"] < 30
    Hub.objects.update(last_contact_at=timezone.now() - dt.timedelta(seconds=400))
    assert counted()["amesh_fleet_hub_silent_seconds"] >= 400


def test_the_time_until_a_server_knows(
    counted: Callable[[], dict[str, float]],  # noqa: F811
    amesh_trust: Callable[..., EphemeralDevice],
) -> None:
    with peer() as other:
        amesh_trust(other.device, "target")
        server = servers.add(other.device.identity.device_id, other.url)
        laptop = amesh_trust()
        delivery.deliver(server.pk)
        before = counted()
        DatabaseAllowList().revoke(laptop.identity.device_id)
        delivery.deliver(server.pk, now=lambda: time.time() + 4)
    after = counted()
    name = "amesh_fleet_delivery_seconds"
    assert after[f"{name}_count"] - before[f"{name}_count"] == 1
    assert 4 <= after[f"{name}_sum"] - before[f"{name}_sum"] < 30
