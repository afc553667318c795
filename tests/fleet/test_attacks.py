"""Messages that no hub sends to this server: each is refused with its code, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal, Hub, HubEntry
from amesh_django.test import AmeshClient, EphemeralDevice
from authmesh.client.signing import sign_request
from authmesh.device import LocalDevice
from tests.fleet.hubs import PATH, TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.greet()
    return found


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"audience": "am_another_server__"}, (403, "wrong_audience")),
        ({"issuer": "am_another_hub_____"}, (403, "not_a_hub")),
        ({"issued_at": 1}, (401, "timestamp_out_of_range")),
        ({"issued_at": int(time.time()) + 4000}, (401, "timestamp_out_of_range")),
        ({"revocations": "no.such.list"}, (400, "malformed_feed")),
    ],
)
def test_a_message_for_somebody_else(
    hub: TestHub, amesh_trust: Trust, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    device = amesh_trust()
    before = AllowListSeal.objects.get().revision, Hub.objects.values().get()
    assert refusal(hub.post(hub.message(hub.event("revoke", device), **changes))) == expected
    assert (AllowListSeal.objects.get().revision, Hub.objects.values().get()) == before and status(device) == 200


def test_a_device_without_the_permission_and_a_hub_that_has_lost_it(hub: TestHub, amesh_trust: Trust) -> None:
    device, target = amesh_trust(permissions={"shell": True, "enroll": "yes"}), amesh_trust()
    stranger = TestHub(hub.server, device)
    assert refusal(stranger.post(stranger.message(stranger.event("revoke", target)))) == (403, "not_a_hub")
    assert refusal(stranger.post(stranger.message())) == (403, "not_a_hub")
    DatabaseAllowList().set_permissions(hub.id, {})
    for message in (hub.message(hub.event("revoke", target)), hub.message()):
        assert refusal(hub.post(message)) == (403, "permission_missing")
    DatabaseAllowList().revoke(hub.id)
    assert refusal(hub.post(hub.message(hub.event("revoke", target)))) == (401, "unauthorized")
    unknown = TestHub(hub.server)
    assert refusal(unknown.post(unknown.message())) == (401, "unauthorized")
    assert status(target) == 200 and Hub.objects.count() == 1 and not HubEntry.objects.exists()


def test_a_recorded_request_is_worth_nothing(hub: TestHub, amesh_trust: Trust) -> None:
    """Replayed at the same server, changed on the way, and handed on by another server that the hub has."""
    device = amesh_trust()
    body = json.dumps(hub.message(hub.event("revoke", device)).to_json()).encode()
    header = sign_request(
        hub.device, method="POST", target=PATH, body_hash=hashlib.sha256(body).hexdigest(), now=time.time()
    )
    client = AmeshClient(hub.device)

    def send(content: bytes) -> Any:
        return client.generic("POST", PATH, content, content_type="application/json", HTTP_AUTHORIZATION=header)

    assert refusal(send(body.replace(b'"revoke"', b'"lift"'))) == (401, "unauthorized")
    assert status(device) == 200
    assert send(body).status_code == 200 and status(device) == 401
    assert refusal(send(body)) == (401, "unauthorized")
    elsewhere = TestHub("am_another_server__", hub.device)
    assert refusal(hub.post(elsewhere.message(elsewhere.event("revoke", amesh_trust())))) == (403, "wrong_audience")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"v":1}',
        b"[" * 100_000,
        b'{"v":true}',
        b"\xff",
        json.dumps({"v": 1, "events": [{}]}).encode(),
    ],
)
def test_what_is_no_message(hub: TestHub, body: bytes) -> None:
    response = AmeshClient(hub.device).generic("POST", PATH, body, content_type="application/json")
    assert refusal(response) == (400, "malformed_feed")


def test_a_message_that_is_too_large(hub: TestHub) -> None:
    body = b'{"v":1,"x":"' + b"x" * (16 * 1024 * 1024) + b'"}'
    response = AmeshClient(hub.device).generic("POST", PATH, body, content_type="application/json")
    assert refusal(response) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "JWT"},
        {"iss": "am_another_hub_____"},
        {"exp": 1},
        {"iat": int(time.time()) + 4000},
        {"epoch": "d" * 32},
        {"revoked": [{"key": "AA", "serial": 1, "at": "2026-01-01T00:00:00Z"}]},
        {"serial": -1},
    ],
)
def test_a_list_that_the_hub_has_not_made_for_this(hub: TestHub, amesh_trust: Trust, changes: dict[str, Any]) -> None:
    device = amesh_trust()
    message = hub.message(until=1, head=1, revocations=hub.list([device], **changes))
    assert refusal(hub.post(message)) == (400, "malformed_feed") and status(device) == 200


def test_a_list_of_another_key_and_an_older_one(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    other = TestHub(hub.server, EphemeralDevice())
    forged = other.list([device], iss=hub.id)
    assert refusal(hub.post(hub.message(until=1, head=1, revocations=forged))) == (400, "malformed_feed")
    old = hub.list([device], serial=1)
    hub.say(until=5, head=5, revocations=hub.list(serial=5))
    assert refusal(hub.post(hub.message(until=5, head=5, revocations=old))) == (400, "malformed_feed")
    assert row(device).state == "active"


def test_a_forged_row_makes_no_list_an_older_one(hub: TestHub, amesh_trust: Trust) -> None:
    """A hub whose row was changed by SQL sends its whole list again, which must be taken."""
    device = amesh_trust()
    Hub.objects.update(list_epoch=hub.epoch, list_serial=10**9)
    assert hub.say(status=409).needs_list
    hub.sent = 0
    hub.greet({device: 5}, head=5, until=5)
    assert status(device) == 401 and Hub.objects.get().list_serial == 5


def deep(levels: int) -> Any:
    found: Any = 1
    for _level in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"at": "9999-12-31T23:59:59-01:00"},
        {"effectiveAt": "0001-01-01T00:00:00+01:00"},
        {"device": "am_short"},
        {"device": "am_0000000000000\x00.."},
        {"successor": "am_\ud800000000000000000"},
        {"permissions": {"granted": 10**400}},
        {"permissions": {"granted": deep(20)}},
        {"permissions": {"granted": deep(500)}},
    ],
)
def test_an_event_that_no_row_can_hold(amesh_server: LocalDevice, settings: Any, changes: dict[str, Any]) -> None:
    """It is refused as malformed, with no traceback: neither the database nor the seal ever gets it."""
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["granted"]}
    lifecycle.reset()
    hub = TestHub(amesh_server.identity.device_id).trusted("enroll")
    hub.greet()
    message = hub.message(hub.trust(EphemeralDevice())).to_json()
    message["events"][0] |= changes
    response = AmeshClient(hub.device).post(PATH, message, content_type="application/json")
    assert refusal(response) == (400, "malformed_feed")
    assert not HubEntry.objects.exists() and DatabaseAllowList().verify().ok


@pytest.mark.parametrize("epoch", ["", "e" * 33, "e e", "e\n", "\x00", "\ud800", "é"])
def test_an_epoch_that_no_column_can_hold(hub: TestHub, epoch: str) -> None:
    message = {**hub.message().to_json(), "epoch": epoch}
    response = AmeshClient(hub.device).post(PATH, message, content_type="application/json")
    assert refusal(response) == (400, "malformed_feed")
