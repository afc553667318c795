"""Revoking in the admin."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError
from django.test import Client

from amesh_django.admin.devices import revoking
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from authmesh.protocol.errors import AllowListBusy
from tests.admin.people import (
    LIST,
    REVOKE,
    Trust,
    logged_in,
    page_of,
    revoke,
    staff,
    text_of,
)


def test_revoke(trust: Trust, root: Client) -> None:
    device = trust()
    key = device.to_entry().public_key
    page = root.get(REVOKE, {"devices": device.device_id})
    assert text_of(page).count(f"Revoke laptop ({device.device_id})") == 3  # title, heading, button
    assert f">laptop ({device.device_id})</a>" in page.content.decode()  # breadcrumbs
    assert not Device.objects.get(pk=device.pk).is_revoked
    response = revoke(root, device, reason="  left on the train ", follow=True)
    assert response.redirect_chain == [(page_of(device), 302)]
    assert f"Revoked: laptop ({device.device_id})." in text_of(response)
    assert "left on the train" in text_of(response)
    assert "may authenticate" not in text_of(response)
    assert "amesh-revoke" not in response.content.decode().replace("amesh-revoked", "")
    row = Device.objects.get(pk=device.pk)
    assert (row.revoked_by, row.revoke_reason, row.is_revoked) == ("root", "left on the train", True)
    assert DatabaseAllowList().find(key) is None
    event = AuditEvent.objects.get(device_id=device.device_id, kind="revoke")
    assert (event.actor, event.actor_type, event.text) == ("root", "user", "left on the train")
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.object_repr) == (str(device.pk), f"laptop ({device.device_id})")
    assert entry.get_change_message() == "Revoked. Reason: left on the train"


@pytest.mark.parametrize("method", ["get", "head", "put", "delete", "options"])
def test_only_a_post_revokes(trust: Trust, root: Client, method: str) -> None:
    device = trust()
    getattr(root, method)(f"{REVOKE}?devices={device.device_id}&reason=lost")
    assert not Device.objects.get(pk=device.pk).is_revoked


@pytest.mark.parametrize("reason", ["", "   ", "\n\t", "\u200b\u2060", "x" * 1001])
def test_a_reason_is_required(trust: Trust, root: Client, reason: str) -> None:
    device = trust()
    response = revoke(root, device, reason=reason)
    assert response.status_code == 200
    assert "errorlist" in response.content.decode()
    assert device.device_id in text_of(response)
    assert not Device.objects.get(pk=device.pk).is_revoked


def test_csrf(trust: Trust) -> None:
    device = trust()
    client = logged_in(staff("root", is_superuser=True), enforce_csrf_checks=True)
    assert revoke(client, device).status_code == 403
    data = {"user": "", "amesh_revision": str(device.revision)}
    assert client.post(page_of(device), data).status_code == 403
    token = client.get(REVOKE, {"devices": device.device_id}).context["csrf_token"]
    assert not Device.objects.get(pk=device.pk).is_revoked
    data = {"devices": device.device_id, "reason": "lost", "csrfmiddlewaretoken": str(token)}
    assert client.post(REVOKE, data).status_code == 302
    assert Device.objects.get(pk=device.pk).is_revoked


def test_revoke_several_devices_and_name_those_that_were_revoked_already(trust: Trust, root: Client) -> None:
    first, second, old = trust("one"), trust("two"), trust("old")
    DatabaseAllowList(by="someone").revoke(old.device_id, reason="before")
    data = {"action": "revoke_selected", "_selected_action": [first.pk, second.pk, old.pk], "index": "0"}
    page = root.post(LIST, data)
    assert page.status_code == 200
    assert "Revoke 2 devices" in text_of(page)
    assert "Already revoked, skipped old revoked" in text_of(page)
    assert not Device.objects.exclude(pk=old.pk).exclude(revoked_at=None).exists()
    names = re.search(r'name="devices" value="([^"]*)"', page.content.decode())
    assert names and set(names[1].split(",")) == {first.device_id, second.device_id}
    DatabaseAllowList(by="quicker").revoke(second.device_id, reason="meanwhile")
    response = root.post(REVOKE, {"devices": names[1], "reason": "stolen"}, follow=True)
    assert response.redirect_chain == [(LIST, 302)]
    assert f"Revoked: one ({first.device_id})." in text_of(response)
    assert f"Already revoked, skipped: two ({second.device_id})." in text_of(response)
    assert Device.objects.get(pk=second.pk).revoked_by == "quicker"
    assert Device.objects.get(pk=old.pk).revoke_reason == "before"


def test_devices_that_do_not_exist_or_are_revoked_lead_back_to_the_list(trust: Trust, root: Client) -> None:
    device = trust()
    DatabaseAllowList().revoke(device.device_id)
    for names, expected in ((device.device_id, "Already revoked"), ("am_nobody", "No such device"), ("", "No such")):
        response = root.get(REVOKE, {"devices": names}, follow=True)
        assert response.redirect_chain == [(LIST, 302)]
        assert expected in text_of(response)


@pytest.mark.process
@pytest.mark.usefixtures("default_database", "amesh_server")
def test_a_device_id_that_a_database_cannot_hold_is_not_found() -> None:
    root = logged_in(staff("root", is_superuser=True))
    for page in (
        root.get(REVOKE, {"devices": "\x00"}, follow=True),
        root.post(REVOKE, {"devices": "\x00"}, follow=True),
    ):
        assert "No such device is in the allow list" in text_of(page)


def test_not_too_many_at_once(trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking, "MAX_DEVICES", 2)
    devices = [trust(str(number)) for number in range(3)]
    response = revoke(root, *devices, follow=True)
    assert "At most 2 devices can be revoked at once" in text_of(response)
    data = {"action": "revoke_selected", "_selected_action": [device.pk for device in devices], "index": "0"}
    assert "At most 2 devices" in text_of(root.post(LIST, data, follow=True))
    assert not Device.objects.exclude(revoked_at=None).exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AllowListBusy("The list was busy with other changes; nothing was changed. Try again."), "was busy"),
        (DatabaseError("disk full"), "The database returned an error (DatabaseError)"),
    ],
)
def test_an_error_is_a_message_and_devices_revoked_before_it_stay_revoked(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    first, second = trust("one"), trust("two")
    real = DatabaseAllowList.revoke

    def failing(self: DatabaseAllowList, device_id: str, **options: Any) -> Any:
        if device_id == second.device_id:
            raise error
        return real(self, device_id, **options)

    monkeypatch.setattr(DatabaseAllowList, "revoke", failing)
    response = revoke(root, first, second, reason="stolen")
    assert response.status_code == 200
    page = text_of(response)
    assert expected in page
    assert f"Revoked: one ({first.device_id})." in page
    assert f"Revoke two ({second.device_id}) Cancel" in page  # what is left can be tried again, with the same reason
    assert "stolen" in page
    assert Device.objects.get(pk=first.pk).is_revoked
    assert not Device.objects.get(pk=second.pk).is_revoked
