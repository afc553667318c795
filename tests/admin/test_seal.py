"""The admin while the seal is broken or cannot be verified: warnings, and changes that are rejected."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, RequestFactory
from django.urls import ResolverMatch, reverse

from amesh_django import lifecycle
from amesh_django.admin.devices import DeviceAdmin
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import current_list
from tests.admin.people import (
    JOURNAL,
    LIST,
    REVOKE,
    Trust,
    assign,
    break_seal,
    logged_in,
    page_of,
    revoke,
    staff,
    text_of,
)


def test_a_broken_seal_is_shown_on_every_page_until_it_is_fixed(trust: Trust, root: Client) -> None:
    device = trust()
    pages = [
        LIST,
        JOURNAL,
        page_of(device),
        f"{REVOKE}?devices={device.device_id}",
        reverse("admin:app_list", args=["amesh"]),
    ]
    for url in pages:
        assert "amesh-banner" not in root.get(url).content.decode()
    assert "seal" not in text_of(root.get(reverse("admin:index")))
    break_seal(device)
    for url in pages:
        response = root.get(url)
        assert 'class="amesh-banner" role="alert"' in response.content.decode(), url
        assert "manage.py amesh_integrity --reseal" in text_of(response)
    index = text_of(root.get(reverse("admin:index")))
    assert index.count("The allow list does not match its seal") == 1
    # Two commands in one line would be copied at once: the list would be resealed before anybody has looked.
    assert "amesh_integrity" not in index
    assert f'<a href="{LIST}">See what to do</a>' in root.get(reverse("admin:index")).content.decode()
    DatabaseAllowList().reseal(by="operator")
    for url in (*pages, reverse("admin:index")):
        assert "does not match its seal" not in root.get(url).content.decode(), url


def test_the_index_does_not_warn_users_who_may_not_view_devices(trust: Trust) -> None:
    break_seal(trust())
    client = logged_in(staff("staff", "auth.view_user"))
    assert "seal" not in text_of(client.get(reverse("admin:index")))


def test_the_banner_names_the_rows_that_differ(trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [trust(f"number {number}") for number in range(3)]
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET friendly_name = 'x‮<b>' WHERE id = %s", [devices[0].pk])
        cursor.execute("UPDATE amesh_device SET role = 'target' WHERE id <> %s", [devices[0].pk])
    page = root.get(LIST)
    banner = text_of(page).partition("On the server, run:")[0]
    for device in devices:  # the name that was sealed: the person who changed a row may have chosen the new one
        assert f"{device.device_id} ({device.friendly_name}): " in banner
    assert "role is 'target', but was sealed as 'controller'" in banner
    assert not {"‮", "x<b>"} & set(page.content.decode())
    monkeypatch.setattr("amesh_django.admin.trouble._MAX_NAMED", 1)
    assert "2 more differences" in text_of(root.get(LIST))
    monkeypatch.setattr("amesh_django.admin.trouble._MAX_COMPARED", 2)
    assert "differences" not in text_of(root.get(LIST))
    DatabaseAllowList().reseal(by="operator")
    assert "was sealed as" not in text_of(root.get(LIST))


def test_a_broken_seal_leaves_revoking_and_offers_no_mapping(trust: Trust, root: Client) -> None:
    device = trust()
    assert 'name="_save"' in root.get(page_of(device)).content.decode()
    break_seal(trust("other"))
    page = root.get(page_of(device)).content.decode()
    assert f"{REVOKE}?devices={device.device_id}" in page
    assert 'name="user"' not in page
    assert 'name="_save"' not in page
    assert "revoke_selected" in root.get(LIST).content.decode()


def test_a_device_is_revoked_while_the_seal_is_broken(trust: Trust, root: Client) -> None:
    device = trust()
    break_seal(trust("other"))
    response = root.post(REVOKE, {"devices": device.device_id, "reason": "stolen"}, follow=True)
    assert "Revoked: " in text_of(response)
    assert "do not match their seal" in text_of(response)
    assert Device.objects.get(pk=device.pk).is_revoked
    assert LogEntry.objects.count() == 1


def test_nothing_else_is_changed_while_the_seal_is_broken(trust: Trust, root: Client) -> None:
    device = trust()
    break_seal(device)
    response = assign(root, device, staff("robot"))
    assert "The change was rejected" in text_of(response)
    row = Device.objects.get(pk=device.pk)
    assert (row.is_revoked, row.user) == (False, None)
    assert not LogEntry.objects.exists()


def test_a_server_without_its_key_warns_and_advises_against_resealing(
    trust: Trust, root: Client, settings: Any, tmp_path: Any
) -> None:
    device = trust()
    settings.AMESH = {"DIR": str(tmp_path / "nothing")}
    lifecycle.reset()
    page = root.get(LIST)
    assert "cannot be verified" in text_of(page)
    assert "There is no identity in" in text_of(page)
    assert "--reseal" not in page.content.decode()
    assert "key of the audit log is not available" in text_of(root.get(page_of(device)))
    assert "cannot be verified" in text_of(root.get(JOURNAL))
    response = revoke(root, device)
    assert response.status_code == 200
    assert "There is no identity in" in text_of(response)
    assert "There is no identity in" in text_of(assign(root, device, staff("robot")))
    settings.AMESH = {"NO_SUCH": 1}
    lifecycle.reset()
    assert "AMESH['NO_SUCH'] is not a setting" in text_of(root.get(LIST))
    assert "AMESH['NO_SUCH'] is not a setting" in text_of(revoke(root, device))
    assert not Device.objects.get(pk=device.pk).is_revoked


@pytest.mark.parametrize("page", ["list", "device", "revoke"])
def test_a_forged_row_is_noticed_when_it_is_shown(trust: Trust, root: Client, page: str) -> None:
    """The triggers report nothing. The row says that the device was revoked already, so that nobody revokes it."""
    device = trust()
    urls = {"list": LIST, "device": page_of(device), "revoke": f"{REVOKE}?devices={device.device_id}"}
    root.get(LIST)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET revoked_at = added_at")
        cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    shown = root.get(urls[page])
    assert 'class="amesh-banner" role="alert"' in shown.content.decode()
    assert "amesh-revoked" not in shown.content.decode()
    assert "Already revoked" not in text_of(shown)


@pytest.mark.parametrize(
    ("forged", "given", "is_listed"),
    [
        ("revoked_at = added_at", {"state": "revoked"}, False),
        ("revoked_at = added_at", {"state": "trusted"}, True),
        ("suspended_at = added_at", {"state": "suspended"}, False),
        ("role = 'target'", {"role__exact": "target"}, False),
        ("role = 'target'", {"role__exact": "controller"}, True),
        ("user_id = 1", {"mapped": "yes"}, False),
        ("user_id = 1", {"mapped": "no"}, True),
        ("friendly_name = 'boss'", {"q": "boss"}, False),
    ],
)
def test_a_forged_row_is_not_under_a_filter_as_what_it_is_not(
    trust: Trust, root: Client, forged: str, given: dict[str, str], is_listed: bool
) -> None:
    device = trust("laptop")
    user = User.objects.get(username=root.get(LIST).context["user"].username)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE amesh_device SET {forged.replace('= 1', f'= {user.pk}')}")  # noqa: S608
        cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    page = root.get(LIST, given)
    assert (device.device_id in {row.device_id for row in page.context["cl"].result_list}) == is_listed
    assert 'class="amesh-banner" role="alert"' in page.content.decode()


def test_the_search_of_other_forms_does_not_offer_a_forged_name(trust: Trust, root: Client) -> None:
    device, other = trust("laptop"), trust("other laptop")
    request = RequestFactory().get("/")
    request.resolver_match = ResolverMatch(print, (), {}, "autocomplete")
    admin = DeviceAdmin(Device, site)
    root.get(LIST)

    def offered(term: str) -> set[str]:
        found, _ = admin.get_search_results(request, admin.get_queryset(request), term)
        return {row.device_id for row in found}

    assert offered("laptop") == offered("") == {device.device_id, other.device_id}
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET friendly_name = 'boss' WHERE id = %s", [device.pk])
        cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    assert offered("") == {other.device_id} and offered("boss") == set()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE amesh_device SET added_at = 'garbage' WHERE id = %s",
        "UPDATE amesh_device SET friendly_name = x'ff00' WHERE id = %s",
        "UPDATE amesh_device SET device_id = x'ff' WHERE id = %s",
    ],
    ids=lambda text: text.split()[3],
)
@pytest.mark.parametrize("touched", [False, True])
def test_a_row_that_cannot_be_shown_does_not_hide_the_banner(
    trust: Trust, root: Client, damage: str, touched: bool
) -> None:
    device, other = trust(), trust("other")
    current_list().snapshot()
    with connection.cursor() as cursor:
        cursor.execute(damage, [device.pk])
        if not touched:
            cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    for url in (LIST, page_of(device), f"{REVOKE}?devices={device.device_id}"):
        page = root.get(url, follow=True)
        assert 'class="amesh-banner" role="alert"' in page.content.decode(), url
    assert "revoke devices on the server: manage.py amesh_revoke DEVICE_ID" in text_of(root.get(LIST))
    assert "Revoked: other" in text_of(revoke(root, other, follow=True))


def test_a_bug_is_not_hidden_while_the_list_is_good(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust()
    monkeypatch.setattr("amesh_django.admin.devices.admin.verify_shown", lambda devices: int("bug"))
    with pytest.raises(ValueError, match="bug"):
        root.get(LIST)


@pytest.mark.parametrize("page", ["list", "device", "revoke"])
def test_a_row_that_was_removed_is_noticed(trust: Trust, root: Client, page: str) -> None:
    """The triggers report nothing. Processes that have verified the list go on accepting the device, and no page shows it."""
    device = trust()
    trust()
    urls = {"list": LIST, "device": page_of(device), "revoke": f"{REVOKE}?devices={device.device_id}"}
    root.get(LIST)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM amesh_device WHERE id = %s", [device.pk])
        cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    assert "does not match its seal" in text_of(root.get(urls[page], follow=True))
