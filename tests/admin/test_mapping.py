"""Mapping a device to a user in the admin, and the permissions that this needs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from authmesh.protocol.errors import AllowListBusy
from tests.admin.people import (
    Trust,
    assign,
    logged_in,
    mapped,
    page_of,
    staff,
    text_of,
)


def test_map_and_unmap(trust: Trust, root: Client) -> None:
    device, user = trust(), staff("robot")
    response = assign(root, device, user)
    assert f"The device “ laptop ({device.device_id}) ” was changed successfully" in text_of(response)
    assert mapped(device) == user
    assert AuditEvent.objects.first().actor == "root"  # type: ignore[union-attr]
    assert "mapped user" in LogEntry.objects.get().get_change_message().lower()
    assert DatabaseAllowList().verify().ok
    assign(root, device, None)
    assert mapped(device) is None
    assert DatabaseAllowList().verify().ok
    page = text_of(root.get(page_of(device)))
    assert "Mapped user: robot → –" in page
    assert "Mapped user: robot" in page


def test_nothing_sealed_comes_from_the_form(trust: Trust, root: Client) -> None:
    device = trust()
    before = Device.objects.filter(pk=device.pk).values().get()
    assign(
        root, device, None, friendly_name="x", role="target", permissions_json='{"shell":true}', revoked_at="",
        public_key="x", device_id="am_x", added_by="handshake",
    )  # fmt: skip
    assert Device.objects.filter(pk=device.pk).values().get() == before
    assert root.post(f"{page_of(device)}", {"_saveasnew": "1"}).status_code in (200, 302, 403)
    assert Device.objects.count() == 1


#: The permissions of a staff user who may map devices.
MAPPER = ("change_device", "auth.view_user", "auth.change_user")


def test_nobody_grants_permissions_that_they_do_not_have(trust: Trust) -> None:
    device = trust()
    client = logged_in(staff("staff", *MAPPER))
    for user, expected in (
        (staff("boss", is_superuser=True), "boss is a superuser"),
        (staff("more", "change_device", "auth.delete_user"), "more has permissions that you do not have"),
    ):
        assert expected in text_of(assign(client, device, user))
        assert mapped(device) is None
        # Nobody may take a device away from such a user either.
        DatabaseAllowList().map_user(device.device_id, user)
        assert expected in text_of(assign(client, device, None))
        assert mapped(device) == user
        DatabaseAllowList().map_user(device.device_id, None)
    for user in (staff("same", *MAPPER), staff("less", "change_device"), staff("none")):
        assign(client, device, user)
        assert mapped(device) == user


@pytest.mark.parametrize("permissions", [(), ("auth.view_user",), ("auth.change_user",)])
def test_mapping_needs_the_permissions_to_view_and_change_users(trust: Trust, permissions: tuple[str, ...]) -> None:
    """A customer has no permissions in the admin, so a clerk has all of them: to compare permissions is not enough."""
    device, customer = trust(), staff("customer", is_staff=False)
    clerk = logged_in(staff("clerk", "change_device", *permissions))
    assert "You may not view and change users (auth.view_user, auth.change_user)" in text_of(
        assign(clerk, device, customer)
    )
    assert mapped(device) is None
    DatabaseAllowList().map_user(device.device_id, customer)
    assert "Ask a superuser to change this mapping" in text_of(assign(clerk, device, None))
    assert mapped(device) == customer


def test_a_superuser_maps_to_every_active_user(trust: Trust, root: Client) -> None:
    device = trust()
    boss, gone = staff("boss", is_superuser=True), staff("gone", is_active=False)
    assign(root, device, boss)
    assert mapped(device) == boss
    assert "gone is not active" in text_of(assign(root, device, gone))
    assert mapped(device) == boss


def test_a_page_that_is_out_of_date_changes_nothing(trust: Trust, root: Client) -> None:
    device, user = trust(), staff("robot")
    DatabaseAllowList().map_user(device.device_id, user)  # after the page was opened
    for revision in (str(device.revision), "", "x"):
        response = assign(root, device, None, amesh_revision=revision)
        assert "was changed while this page was open" in text_of(response)
        assert mapped(device) == user


def test_a_revoked_device_can_be_unmapped_so_that_its_user_can_be_deleted(trust: Trust, root: Client) -> None:
    device, user = trust(), staff("robot")
    DatabaseAllowList().map_user(device.device_id, user)
    DatabaseAllowList().revoke(device.device_id)
    assign(root, device, None)
    user.delete()
    assert mapped(device) is None


@pytest.mark.parametrize("is_revoked", [False, True])
def test_deleting_a_mapped_user_names_the_device_to_unmap(trust: Trust, root: Client, is_revoked: bool) -> None:
    device, user, other = trust(), staff("robot"), staff("other")
    assign(root, device, user)
    if is_revoked:
        DatabaseAllowList().revoke(device.device_id)
    one = reverse("admin:auth_user_delete", args=[user.pk])
    many = {"action": "delete_selected", "_selected_action": [user.pk, other.pk], "post": "yes"}
    users = reverse("admin:auth_user_changelist")
    for page in (root.get(one), root.post(one, {"post": "yes"}), root.post(users, many)):
        assert "Cannot delete user" in text_of(page)
        assert f"The device laptop ({device.device_id}) is mapped to robot." in text_of(page)
        assert text_of(page).count("is mapped to robot") == 1
        assert f'<a href="{page_of(device)}">laptop ({device.device_id})</a>' in page.content.decode()
        assert mapped(device) == user
    assign(root, device, None)
    assert "is mapped to" not in text_of(root.get(one))
    root.post(users, many)
    assert not type(user).objects.filter(username__in=["robot", "other"]).exists()
    assert Device.objects.filter(pk=device.pk).exists()


def test_a_user_of_many_devices_does_not_get_a_message_for_each(trust: Trust, root: Client) -> None:
    user = staff("robot")
    for number in range(12):
        DatabaseAllowList().map_user(trust(f"number {number}").device_id, user)
    page = text_of(root.get(reverse("admin:auth_user_delete", args=[user.pk])))
    assert page.count("is mapped to robot") == 10
    assert page.count("number ") == 22  # Django's own list has all of them


def test_a_revoked_device_is_not_offered_a_user(trust: Trust, root: Client) -> None:
    device, other = trust(), trust("other")
    DatabaseAllowList().map_user(device.device_id, staff("robot"))
    for one in (device, other):
        DatabaseAllowList().revoke(one.device_id)
    page = root.get(page_of(device)).content.decode()  # to remove it
    assert 'name="user"' in page
    assert "To map a device to a user" in page
    page = root.get(page_of(other)).content.decode()
    assert "To map a device to a user" not in page
    assert 'name="user"' not in page
    assert 'name="_save"' not in page


def test_the_user_is_searched_for_or_typed(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    device, mapper = trust(), logged_in(staff("mapper", *MAPPER))
    assert "admin-autocomplete" in mapper.get(page_of(device)).content.decode()
    monkeypatch.setattr("django.contrib.auth.admin.UserAdmin.search_fields", ())
    assert "vForeignKeyRawIdAdminField" in mapper.get(page_of(device)).content.decode()


@pytest.mark.parametrize("permissions", [("view_device",), ("change_device",), ("change_device", "auth.view_user")])
def test_mapping_is_not_offered_to_those_who_may_not_map(trust: Trust, permissions: tuple[str, ...]) -> None:
    device, robot = trust(), staff("robot")
    DatabaseAllowList().map_user(device.device_id, robot)
    page = logged_in(staff("clerk", *permissions)).get(page_of(device))
    assert "Mapped user: robot" in text_of(page)
    assert not re.search('name="(user|_save)"', page.content.decode())


def test_the_form_does_not_tell_the_names_of_users(trust: Trust) -> None:
    """Django's field for a primary key shows whose it is. Anyone who may change devices could list all users with it."""
    device, boss = trust(), staff("the.boss", is_superuser=True)
    page = assign(logged_in(staff("clerk", "change_device")), device, boss)
    assert "You may not view and change users" in text_of(page)
    assert "the.boss" not in page.content.decode()


def test_an_error_of_the_list_is_a_message_on_the_page_of_the_device(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: DatabaseAllowList, device_id: str, user: Any) -> None:
        raise AllowListBusy("The list was busy. Try again.")

    device = trust()
    monkeypatch.setattr(DatabaseAllowList, "map_user", busy)
    response = assign(root, device, staff("robot"))
    assert response.redirect_chain == [(page_of(device), 302)]
    assert "The list was busy. Try again." in text_of(response)
