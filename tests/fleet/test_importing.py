"""``manage.py amesh_revocations``: the signed list of a hub is carried to a server by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import signed_list
from amesh_django.models import AuditEvent, Hub, HubEntry
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from authmesh.protocol.fleet.events import key_hash
from tests.commands.test_management import call
from tests.fleet.hubs import TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


def test_export(
    amesh_server: LocalDevice, amesh_trust: Trust, tmp_path: Path, django_capture_on_commit_callbacks: Any
) -> None:
    device = amesh_trust()
    DatabaseAllowList(by="person").revoke(device.identity.device_id, reason="lost")
    file = tmp_path / "list.jwt"
    with django_capture_on_commit_callbacks(execute=True):
        done = call("revocations", "--export", str(file), "--json")
    assert (done.code, json.loads(done.out)) == (0, {"file": str(file)})
    own = amesh_server.identity
    found = signed_list.verify(
        file.read_text().strip(), issuer=own.device_id, issuer_key=own.public_key, now=time.time()
    )
    assert [one.key for one in found.revoked] == [key_hash(device.identity.public_key)]
    assert call("revocations", "--export", "-").out == file.read_text()
    assert AuditEvent.objects.filter(kind="export")[0].subject == "signed list of revocations"


def test_import(amesh_server: LocalDevice, amesh_trust: Trust, tmp_path: Path) -> None:
    """It revokes, remembers keys that are not here yet, and says nothing about the rest, which the hub still sends."""
    lost, later, good = amesh_trust(EphemeralDevice("lost")), EphemeralDevice("later"), amesh_trust()
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    file = tmp_path / "list.jwt"

    def bring(text: str) -> tuple[int, str]:
        file.write_text(text + "\n")
        done = call("revocations", "--import", str(file), "--json")
        return done.code, done.out + done.err

    code, text = bring(hub.list({lost: 7, later: 8}))
    assert code == 0 and json.loads(text) == {"hub": hub.id, "serial": 8, "keys": 2, "revoked": 1}
    assert (status(lost), status(good), row(lost).revoked_by) == (401, 200, hub.by)
    assert HubEntry.objects.count() == 2
    kept = Hub.objects.get()
    assert (kept.applied, kept.last_contact_at) == (0, None)

    evil = EphemeralDevice("evil")
    old = TestHub(hub.server, hub.device, epoch="0" * 32)
    for forged, why in (
        (TestHub(hub.server).list([good]), "not a hub"),
        (TestHub(hub.server, evil).list([good], iss=hub.id), "not signed by"),
        (hub.list({good: 7}), "older than"),
        (hub.list({good: 9}, exp=int(time.time()) - 1), "expired"),
        (old.list({good: 9}, iat=int(time.time()) - 50), "resealed"),
        ("é", "not the signed list"),
        ("", ""),
    ):
        code, text = bring(forged)
        assert code == 1 and why in text and "Nothing was changed" in text, text
    done = call("revocations", "--import", str(tmp_path / "missing"))
    assert done.code == 1 and "missing" in done.err
    assert status(good) == 200 and Hub.objects.get().list_serial == 8


def test_a_list_with_more_than_the_limit_of_a_minute_is_imported_at_once(
    amesh_server: LocalDevice, amesh_trust: Trust, tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit holds back a hub until a person looks, and a person has brought the list. The hub has its own limit as before."""
    settings.AMESH = {**settings.AMESH, "HUB_MAX_PER_MINUTE": 2}
    lifecycle.reset()
    lost, more = [amesh_trust() for _ in range(5)], [amesh_trust() for _ in range(3)]
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    file = tmp_path / "list.jwt"
    file.write_text(hub.list(lost, iat=int(time.time()) - 3600))
    done = call("revocations", "--import", str(file), "--json")
    assert done.code == 0 and json.loads(done.out)["revoked"] == 5, done.err
    assert [status(one) for one in lost] == [401] * 5 and "CRITICAL" not in caplog.text
    heard = Hub.objects.get().last_contact_at
    assert heard is None or time.time() - heard.timestamp() > 3500  # the hub was not heard now
    hub.greet(lost, head=1, until=0, after=0)
    assert hub.post(hub.message(*[hub.event("revoke", one, 2) for one in more])).status_code == 429
    assert [status(one) for one in more].count(401) == 2
