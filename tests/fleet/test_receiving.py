"""A server takes in what a hub says: what each event does, and what it may not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.urls import reverse

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Hub
from amesh_django.test import AmeshClient, EphemeralDevice
from authmesh.device import LocalDevice
from authmesh.protocol.fleet.feed import Acknowledgement
from tests.fleet.hubs import EPOCH, PATH, TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.greet()
    return found


@pytest.fixture
def enroller(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may also add devices."""
    found = TestHub(amesh_server.identity.device_id).trusted("enroll")
    found.greet()
    return found


def test_a_revocation_of_the_hub_is_enforced_and_signed_for(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    assert reverse("amesh_django:feed") == PATH
    device = amesh_trust()
    assert status(device) == 200
    message = hub.message(hub.event("revoke", device, reason="lost"))
    client = AmeshClient(hub.device)
    response = client.post(PATH, message.to_json(), content_type="application/json")
    assert response.status_code == 200 and status(device) == 401
    nonce = response.wsgi_request.META["HTTP_AUTHORIZATION"].split("nonce=")[1].split(",")[0].strip('"')
    answer = Acknowledgement.from_json(
        response.json(),
        issuer=hub.id,
        audience=hub.server,
        nonce=nonce,
        server_key=amesh_server.identity.public_key,
    )
    assert (answer.epoch, answer.applied, answer.refused) == (EPOCH, 1, ())
    found = row(device)
    assert (found.revoked_by, found.revoke_reason) == (hub.by, "lost")
    event = AuditEvent.objects.get(device_id=found.device_id, kind="revoke")
    assert (event.actor, event.actor_type, event.text) == (hub.by, "hub", "lost")
    assert DatabaseAllowList().verify().ok and not DatabaseAllowList().verify().hubs
    kept = Hub.objects.get()
    assert (kept.applied, kept.head, kept.url, kept.entries) == (1, 1, "https://hub.example/amesh/", 1)
