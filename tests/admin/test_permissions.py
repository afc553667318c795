"""The permissions to view, revoke and map devices in the admin."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import resolve, reverse

from amesh_django.models import AllowListSeal, AuditEvent, Device, DeviceActivity
from tests.admin.people import (
    LIST,
    REVOKE,
    Trust,
    logged_in,
    mapped,
    page_of,
    revoke,
    staff,
    text_of,
)


@pytest.mark.parametrize(
    ("permissions", "look", "ask", "map_"),
    [
        ((), 403, 403, 403),
        (("view_device",), 200, 403, 403),
        (("view_device", "revoke_device"), 200, 200, 403),
        (("change_device",), 200, 403, 200),  # the page again, with an error
        (("change_device", "auth.view_user", "auth.change_user"), 200, 403, 302),
        (("change_device", "auth.view_user", "auth.change_user", "revoke_device"), 200, 200, 302),
        # The page that revokes shows the devices, so it needs the permission to view them.
        (("revoke_device",), 403, 403, 403),
        # Permissions for the audit log or for users are not permissions for devices.
        (("view_auditevent", "auth.change_user"), 403, 403, 403),
    ],
)
def test_permissions(trust: Trust, permissions: tuple[str, ...], look: int, ask: int, map_: int) -> None:
    device = trust()
    client = logged_in(staff("staff", *permissions))
    assert client.get(LIST).status_code == look
    assert client.get(page_of(device)).status_code == look
    assert client.get(REVOKE, {"devices": device.device_id}).status_code == ask
    user = staff("nobody", is_staff=False)
    data = {"user": str(user.pk), "amesh_revision": str(device.revision)}
    assert client.post(page_of(device), data).status_code == map_
    assert (mapped(device) == user) is (map_ == 302)
    response = revoke(client, device)
    assert response.status_code == (302 if ask == 200 else ask)
    assert Device.objects.get(pk=device.pk).is_revoked is (ask == 200)


@pytest.mark.parametrize("is_staff", [None, False])
def test_users_who_are_not_staff_are_redirected_to_the_login(trust: Trust, is_staff: bool | None) -> None:
    device = trust()
    client = Client() if is_staff is None else logged_in(staff("x", "view_device", "revoke_device", is_staff=False))
    for url in (LIST, page_of(device), REVOKE):
        assert client.get(url).headers["Location"].startswith(reverse("admin:login"))
    assert revoke(client, device).headers["Location"].startswith(reverse("admin:login"))
    assert not Device.objects.get(pk=device.pk).is_revoked


def test_buttons_are_hidden_without_the_permission(trust: Trust) -> None:
    device = trust()
    viewer = logged_in(staff("viewer", "view_device"))
    assert "revoke_selected" not in viewer.get(LIST).content.decode()
    assert "amesh-revoke" not in viewer.get(page_of(device)).content.decode()
    revoker = logged_in(staff("revoker", "view_device", "revoke_device"))
    assert "revoke_selected" in revoker.get(LIST).content.decode()
    assert f"{REVOKE}?devices={device.device_id}" in revoker.get(page_of(device)).content.decode()
    posted = viewer.post(LIST, {"action": "revoke_selected", "_selected_action": [device.pk], "index": "0"})
    assert posted.status_code in (200, 302)  # Django says that there is no such action
    assert "Reason" not in text_of(posted)


def test_nothing_is_added_or_deleted_by_form(trust: Trust, root: Client) -> None:
    device = trust()
    for model, pk in (("device", device.pk), ("auditevent", AuditEvent.objects.first().pk)):  # type: ignore[union-attr]
        for url in (reverse(f"admin:amesh_{model}_add"), reverse(f"admin:amesh_{model}_delete", args=[pk])):
            assert root.get(url).status_code == 403
            root.post(url, {"post": "yes"})
        page = root.get(reverse(f"admin:amesh_{model}_changelist")).content.decode()
        assert "delete_selected" not in page
        assert reverse(f"admin:amesh_{model}_add") not in page
    assert root.post(reverse("admin:amesh_auditevent_change", args=[1]), {"by": "me"}).status_code in (302, 403)
    assert Device.objects.filter(pk=device.pk).exists()


def test_the_seal_is_not_in_the_admin() -> None:
    assert not admin.site.is_registered(AllowListSeal)
    assert not admin.site.is_registered(DeviceActivity)


def test_a_change_has_a_transaction_of_its_own(trust: Trust) -> None:
    for url in (page_of(trust()), REVOKE):
        assert "default" in resolve(url).func._non_atomic_requests  # type: ignore[attr-defined]
