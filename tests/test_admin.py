"""The admin: who may see, revoke and map devices, and what it says where the seal is broken."""

from __future__ import annotations

import datetime as dt
import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError, connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse
from django.utils import timezone

from amesh_django import server
from amesh_django.admin import revoking
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListChange, AllowListSeal, Device, DeviceActivity
from amesh_django.protocol.encoding import b64url_encode
from amesh_django.protocol.errors import AllowListBusy
from amesh_django.test.devices import EphemeralDevice

pytestmark = pytest.mark.django_db

LIST = reverse("admin:amesh_device_changelist")
REVOKE = reverse("admin:amesh_device_revoke")
JOURNAL = reverse("admin:amesh_allowlistchange_changelist")
HOSTILE = "\u202egniht\u202c\x1b[31m<script>alert(1)</script>\u200b"

Trust = Callable[..., EphemeralDevice]
Log = Callable[..., Client]


@pytest.fixture(autouse=True)
def _server(amesh_server: Any) -> None:
    """Every test has a server with an identity."""


@pytest.fixture
def trust(amesh_trust: Trust) -> Callable[..., Device]:
    """``trust(name, **options)`` makes a device that the server trusts, and returns its row."""

    def make(name: str = "laptop", **options: Any) -> Device:
        made = amesh_trust(EphemeralDevice(name), **options)
        return Device.objects.get(device_id=made.identity.device_id)

    return make


def staff(name: str = "staff", *permissions: str, **options: Any) -> User:
    """A member of staff with these permissions (of amesh, unless another app is named)."""
    user: User = get_user_model().objects.create_user(name, password="secret", **{"is_staff": True, **options})
    for permission in permissions:
        app, _dot, codename = f"amesh.{permission}".rpartition(".")
        app = app.removeprefix("amesh.")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def logged_in(user: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


@pytest.fixture
def root() -> Client:
    """A superuser."""
    return logged_in(staff("root", is_superuser=True))


def page_of(device: Device) -> str:
    return reverse("admin:amesh_device_change", args=[device.pk])


def text_of(response: HttpResponse) -> str:
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode())).split())


def revoke(client: Client, *devices: Device, reason: str = "lost", **options: Any) -> Any:
    names = ",".join(device.device_id for device in devices)
    return client.post(REVOKE, {"devices": names, "reason": reason}, **options)


def assign(client: Client, device: Device, user: User | None, **changes: str) -> Any:
    device = Device.objects.get(pk=device.pk)
    data = {"user": str(user.pk) if user else "", "amesh_revision": str(device.revision), **changes}
    return client.post(page_of(device), data, follow=True)


def mapped(device: Device) -> User | None:
    return Device.objects.select_related("user").get(pk=device.pk).user


def break_seal(device: Device) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET role = 'target' WHERE id = %s", [device.pk])


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permissions", "look", "ask", "map_"),
    [
        ((), 403, 403, 403),
        (("view_device",), 200, 403, 403),
        (("view_device", "revoke_device"), 200, 200, 403),
        (("change_device",), 200, 403, 302),
        (("change_device", "revoke_device"), 200, 200, 302),
        # Revoking shows the devices, so it takes the permission to see them.
        (("revoke_device",), 403, 403, 403),
        # Rights over the journal or over users are none over devices.
        (("view_allowlistchange", "auth.change_user"), 403, 403, 403),
    ],
)
def test_permissions(
    trust: Callable[..., Device], permissions: tuple[str, ...], look: int, ask: int, map_: int
) -> None:
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
def test_others_are_sent_to_the_login(trust: Callable[..., Device], is_staff: bool | None) -> None:
    device = trust()
    client = Client() if is_staff is None else logged_in(staff("x", "view_device", "revoke_device", is_staff=False))
    for url in (LIST, page_of(device), REVOKE):
        assert client.get(url).headers["Location"].startswith(reverse("admin:login"))
    assert revoke(client, device).headers["Location"].startswith(reverse("admin:login"))
    assert not Device.objects.get(pk=device.pk).is_revoked


def test_buttons_are_for_those_who_may(trust: Callable[..., Device]) -> None:
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


def test_nothing_is_added_or_deleted_by_form(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    for model, pk in (("device", device.pk), ("allowlistchange", AllowListChange.objects.first().pk)):  # type: ignore[union-attr]
        for url in (reverse(f"admin:amesh_{model}_add"), reverse(f"admin:amesh_{model}_delete", args=[pk])):
            assert root.get(url).status_code == 403
            assert root.post(url, {"post": "yes"}).status_code == 403
        page = root.get(reverse(f"admin:amesh_{model}_changelist")).content.decode()
        assert "delete_selected" not in page
        assert reverse(f"admin:amesh_{model}_add") not in page
    assert root.post(reverse("admin:amesh_allowlistchange_change", args=[1]), {"by": "me"}).status_code in (302, 403)
    assert Device.objects.filter(pk=device.pk).exists()


def test_the_seal_is_not_in_the_admin() -> None:
    assert not admin.site.is_registered(AllowListSeal)
    assert not admin.site.is_registered(DeviceActivity)


def test_a_change_has_a_transaction_of_its_own(trust: Callable[..., Device]) -> None:
    for url in (page_of(trust()), REVOKE):
        assert "default" in resolve(url).func._non_atomic_requests  # type: ignore[attr-defined]


# --- the list --------------------------------------------------------------------------------------------------------


def test_the_list_shows_each_device_in_full(trust: Callable[..., Device], root: Client) -> None:
    device = trust("build server")
    user = staff("robot")
    DatabaseAllowList().map_user(device.device_id, user)
    DeviceActivity.objects.create(device=device, last_seen_at=timezone.now() - dt.timedelta(hours=3))
    revoked = trust("old phone", role="target")
    DatabaseAllowList().revoke(revoked.device_id)
    page = text_of(root.get(LIST))
    for expected in ("build server", device.device_id, "controller", "trusted", "3\xa0hours ago", "manual", "robot"):
        assert expected.replace("\xa0", " ") in page
    for expected in ("old phone", revoked.device_id, "target", "revoked", "never"):
        assert expected in page


def test_the_list_asks_the_same_number_of_queries_for_any_number_of_devices(
    trust: Callable[..., Device], root: Client
) -> None:
    def queries(url: str) -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert root.get(url).status_code == 200
        return len(captured)

    def add(number: int) -> None:
        for index in range(number):
            device = trust(f"device {index}")
            DatabaseAllowList().map_user(device.device_id, staff(f"user of {device.device_id}"))
            DeviceActivity.objects.create(device=device, last_seen_at=timezone.now())

    add(2)
    urls = (LIST, JOURNAL, page_of(Device.objects.first()))  # type: ignore[arg-type]
    for url in urls:
        root.get(url)  # what is read once per process
    few = [queries(url) for url in urls]
    add(12)
    root.get(LIST)
    assert [queries(url) for url in urls] == few
    assert few[0] <= 12


def test_search(trust: Callable[..., Device], root: Client) -> None:
    device, other = trust("build server"), trust("phone")
    DatabaseAllowList().map_user(device.device_id, staff("robot"))
    key = device.to_entry().public_key
    for term in ("BUILD", device.device_id, device.device_id[4:12], device.public_key, b64url_encode(key), "robot"):
        page = text_of(root.get(LIST, {"q": term}))
        assert device.device_id in page, term
        assert other.device_id not in page, term


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=trusted", {"seen", "never", "target"}),
        ("state=revoked", {"revoked"}),
        ("role__exact=target", {"target"}),
        ("added_by__exact=manual", {"seen", "never", "target", "revoked"}),
        ("mapped=yes", {"seen"}),
        ("mapped=no", {"never", "target", "revoked"}),
        ("seen=day", {"seen"}),
        ("seen=week", {"seen", "target"}),
        ("seen=month", {"seen", "target"}),
        ("seen=longer", {"revoked"}),
        ("seen=never", {"never"}),
        ("added_at__year=1999", set()),
        ("state=nonsense", {"seen", "never", "target", "revoked"}),
    ],
)
def test_filters(trust: Callable[..., Device], root: Client, query: str, expected: set[str]) -> None:
    rows = {name: trust(name, role="target" if name == "target" else "controller") for name in
            ("seen", "never", "target", "revoked")}  # fmt: skip
    DatabaseAllowList().map_user(rows["seen"].device_id, staff("robot"))
    DatabaseAllowList().revoke(rows["revoked"].device_id)
    for name, days in (("seen", 0), ("target", 3), ("revoked", 90)):
        moment = timezone.now() - dt.timedelta(days=days)
        DeviceActivity.objects.create(device=rows[name], last_seen_at=moment)
    shown = root.get(f"{LIST}?{query}", follow=True).content.decode()
    assert {name for name, row in rows.items() if row.device_id in shown} == expected


def test_every_column_sorts_and_never_seen_comes_last_where_the_newest_comes_first(
    trust: Callable[..., Device], root: Client
) -> None:
    names = ["never", "yesterday", "today"]
    for days, name in ((None, "never"), (1, "yesterday"), (0, "today")):
        device = trust(name)
        if days is not None:
            DeviceActivity.objects.create(device=device, last_seen_at=timezone.now() - dt.timedelta(days=days))
    for column in range(1, 9):
        for sign in ("", "-"):
            assert root.get(LIST, {"o": f"{sign}{column}"}).status_code == 200
    found = [row.friendly_name for row in root.get(LIST, {"o": "6"}).context["cl"].result_list]
    assert found == names
    found = [row.friendly_name for row in root.get(LIST, {"o": "-6"}).context["cl"].result_list]
    assert found == names[::-1]


def test_a_hostile_name_is_harmless_everywhere(trust: Callable[..., Device], root: Client) -> None:
    device = trust(HOSTILE)
    pages = [
        root.get(LIST),
        root.get(page_of(device)),
        root.get(REVOKE, {"devices": device.device_id}),
        revoke(root, device, follow=True),
        root.get(JOURNAL),
        root.get(reverse("admin:amesh_device_history", args=[device.pk])),
        root.get(reverse("admin:index")),
    ]
    for page in pages:
        content = page.content.decode()
        assert page.status_code == 200
        assert "<script>alert" not in content
        assert not set("\u202e\u202c\u200b\x1b") & set(content)
    for page in pages[:4]:
        assert "gniht&lt;script&gt;alert(1)&lt;/script&gt;" in page.content.decode()


def test_a_nameless_device_can_still_be_clicked(trust: Callable[..., Device], root: Client) -> None:
    trust("\u200b")
    assert ">(no name)</a>" in root.get(LIST).content.decode()


# --- revoking --------------------------------------------------------------------------------------------------------


def test_revoke(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    key = device.to_entry().public_key
    page = root.get(REVOKE, {"devices": device.device_id})
    assert device.device_id in text_of(page)
    assert not Device.objects.get(pk=device.pk).is_revoked
    response = revoke(root, device, reason="  left on the train ", follow=True)
    assert response.redirect_chain == [(page_of(device), 302)]
    assert f"Revoked: {device.device_id} (laptop)" in text_of(response)
    assert "left on the train" in text_of(response)
    assert "may authenticate" not in text_of(response)
    assert "amesh-revoke" not in response.content.decode().replace("amesh-revoked", "")
    row = Device.objects.get(pk=device.pk)
    assert (row.revoked_by, row.revoke_reason, row.is_revoked) == ("root", "left on the train", True)
    assert DatabaseAllowList().find(key) is None
    line = AllowListChange.objects.get(device_id=device.device_id, action="revoked")
    assert line.by == "root"
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.object_repr) == (str(device.pk), device.device_id)
    assert entry.get_change_message() == "Revoked. Reason: left on the train"


@pytest.mark.parametrize("method", ["get", "head", "put", "delete", "options"])
def test_only_a_post_revokes(trust: Callable[..., Device], root: Client, method: str) -> None:
    device = trust()
    getattr(root, method)(f"{REVOKE}?devices={device.device_id}&reason=lost")
    assert not Device.objects.get(pk=device.pk).is_revoked


@pytest.mark.parametrize("reason", ["", "   ", "\n\t", "\u200b\u2060", "x" * 1001])
def test_a_reason_is_asked_for(trust: Callable[..., Device], root: Client, reason: str) -> None:
    device = trust()
    response = revoke(root, device, reason=reason)
    assert response.status_code == 200
    assert "errorlist" in response.content.decode()
    assert device.device_id in text_of(response)
    assert not Device.objects.get(pk=device.pk).is_revoked


def test_csrf(trust: Callable[..., Device]) -> None:
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


def test_several_at_once_and_those_revoked_already_are_named(trust: Callable[..., Device], root: Client) -> None:
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
    assert f"Revoked: {first.device_id} (one)." in text_of(response)
    assert f"Already revoked, skipped: {second.device_id} (two)." in text_of(response)
    assert Device.objects.get(pk=second.pk).revoked_by == "quicker"
    assert Device.objects.get(pk=old.pk).revoke_reason == "before"


def test_devices_that_are_gone_or_revoked_lead_back_to_the_list(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    DatabaseAllowList().revoke(device.device_id)
    for names, expected in ((device.device_id, "Already revoked"), ("am_nobody", "No such device"), ("", "No such")):
        response = root.get(REVOKE, {"devices": names}, follow=True)
        assert response.redirect_chain == [(LIST, 302)]
        assert expected in text_of(response)


def test_not_too_many_at_once(trust: Callable[..., Device], root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking, "MOST", 2)
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
        (DatabaseError("disk full"), "The database failed (DatabaseError)"),
    ],
)
def test_a_failure_is_a_message_and_what_was_done_stays_done(
    trust: Callable[..., Device], root: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
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
    assert f"Revoked: {first.device_id} (one)." in page
    assert "Revoke 1 device " in page  # what is left can be tried again, with the same reason
    assert "stolen" in page
    assert Device.objects.get(pk=first.pk).is_revoked
    assert not Device.objects.get(pk=second.pk).is_revoked


# --- the seal --------------------------------------------------------------------------------------------------------


def test_a_broken_seal_is_told_on_every_page_until_it_is_mended(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    pages = [
        LIST,
        JOURNAL,
        page_of(device),
        f"{REVOKE}?devices={device.device_id}",
        reverse("admin:amesh_device_history", args=[device.pk]),
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
    assert "manage.py amesh_integrity" in index
    DatabaseAllowList().reseal(by="operator")
    for url in (*pages, reverse("admin:index")):
        assert "does not match its seal" not in root.get(url).content.decode(), url


def test_the_index_says_nothing_to_those_who_see_no_devices(trust: Callable[..., Device]) -> None:
    break_seal(trust())
    client = logged_in(staff("staff", "auth.view_user"))
    assert "seal" not in text_of(client.get(reverse("admin:index")))


def test_nothing_is_changed_while_the_seal_is_broken(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    break_seal(device)
    response = revoke(root, device, reason="stolen")
    assert response.status_code == 200
    assert "do not match their seal" in text_of(response)
    assert "The change was refused" in text_of(response)
    response = assign(root, device, staff("robot"))
    assert "The change was refused" in text_of(response)
    row = Device.objects.get(pk=device.pk)
    assert (row.is_revoked, row.user) == (False, None)
    assert not LogEntry.objects.exists()


def test_a_server_without_its_key_says_so_and_advises_against_resealing(
    trust: Callable[..., Device], root: Client, settings: Any, tmp_path: Any
) -> None:
    device = trust()
    settings.AMESH = {"DIR": str(tmp_path / "nothing")}
    server.reset()
    page = root.get(LIST)
    assert "can’t be checked" in text_of(page)
    assert "There is no identity in" in text_of(page)
    assert "--reseal" not in page.content.decode()
    assert "can’t be had" in text_of(root.get(page_of(device)))
    assert "can’t be checked" in text_of(root.get(JOURNAL))
    response = revoke(root, device)
    assert response.status_code == 200
    assert "There is no identity in" in text_of(response)
    assert "There is no identity in" in text_of(assign(root, device, staff("robot")))
    settings.AMESH = {"NO_SUCH": 1}
    server.reset()
    assert "AMESH['NO_SUCH'] is not a setting" in text_of(root.get(LIST))
    assert "AMESH['NO_SUCH'] is not a setting" in text_of(revoke(root, device))
    assert not Device.objects.get(pk=device.pk).is_revoked


# --- mapping ---------------------------------------------------------------------------------------------------------


def test_map_and_unmap(trust: Callable[..., Device], root: Client) -> None:
    device, user = trust(), staff("robot")
    response = assign(root, device, user)
    assert "was changed successfully" in text_of(response)
    assert mapped(device) == user
    assert AllowListChange.objects.first().by == "root"  # type: ignore[union-attr]
    assert "mapped user" in LogEntry.objects.get().get_change_message().lower()
    assert DatabaseAllowList().verify().ok
    assign(root, device, None)
    assert mapped(device) is None
    assert DatabaseAllowList().verify().ok
    page = text_of(root.get(page_of(device)))
    assert "Mapped user: robot → –" in page
    assert "Mapped user: robot" in page


def test_nothing_sealed_comes_from_the_form(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    before = Device.objects.filter(pk=device.pk).values().get()
    assign(
        root, device, None, friendly_name="x", role="target", permissions_json='{"shell":true}', revoked_at="",
        public_key="x", device_id="am_x", added_by="handshake",
    )  # fmt: skip
    assert Device.objects.filter(pk=device.pk).values().get() == before
    assert root.post(f"{page_of(device)}", {"_saveasnew": "1"}).status_code in (200, 302, 403)
    assert Device.objects.count() == 1


def test_nobody_hands_out_rights_that_they_do_not_have(trust: Callable[..., Device]) -> None:
    device = trust()
    client = logged_in(staff("staff", "change_device", "auth.view_user"))
    for user, expected in (
        (staff("boss", is_superuser=True), "boss is a superuser"),
        (staff("more", "change_device", "auth.delete_user"), "more has rights that you do not have"),
    ):
        assert expected in text_of(assign(client, device, user))
        assert mapped(device) is None
        # Nor do they take a device away from such a user.
        DatabaseAllowList().map_user(device.device_id, user)
        assert expected in text_of(assign(client, device, None))
        assert mapped(device) == user
        DatabaseAllowList().map_user(device.device_id, None)
    for user in (staff("same", "change_device", "auth.view_user"), staff("less", "change_device"), staff("none")):
        assign(client, device, user)
        assert mapped(device) == user


def test_a_superuser_maps_to_anybody_but_the_inactive(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    boss, gone = staff("boss", is_superuser=True), staff("gone", is_active=False)
    assign(root, device, boss)
    assert mapped(device) == boss
    assert "gone is not active" in text_of(assign(root, device, gone))
    assert mapped(device) == boss


def test_a_page_that_is_out_of_date_changes_nothing(trust: Callable[..., Device], root: Client) -> None:
    device, user = trust(), staff("robot")
    DatabaseAllowList().map_user(device.device_id, user)  # after the page was opened
    for revision in (str(device.revision), "", "x"):
        response = assign(root, device, None, amesh_revision=revision)
        assert "was changed while this page was open" in text_of(response)
        assert mapped(device) == user


def test_a_revoked_device_can_be_unmapped_so_that_its_user_can_be_deleted(
    trust: Callable[..., Device], root: Client
) -> None:
    device, user = trust(), staff("robot")
    DatabaseAllowList().map_user(device.device_id, user)
    DatabaseAllowList().revoke(device.device_id)
    assign(root, device, None)
    user.delete()
    assert mapped(device) is None


def test_a_user_as_which_a_device_acts_is_not_deleted(trust: Callable[..., Device], root: Client) -> None:
    device, user = trust(), staff("robot")
    assign(root, device, user)
    url = reverse("admin:auth_user_delete", args=[user.pk])
    assert "Cannot delete user" in text_of(root.get(url))
    assert root.post(url, {"post": "yes"}).status_code == 403
    assert mapped(device) == user


def test_the_user_is_searched_for_or_typed(trust: Callable[..., Device]) -> None:
    device = trust()
    searching = logged_in(staff("a", "change_device", "auth.view_user")).get(page_of(device)).content.decode()
    assert "admin-autocomplete" in searching
    typing = logged_in(staff("b", "change_device")).get(page_of(device)).content.decode()
    assert "vForeignKeyRawIdAdminField" in typing
    reading = logged_in(staff("c", "view_device")).get(page_of(device)).content.decode()
    assert 'name="user"' not in reading


def test_a_busy_list_is_a_message_on_the_page_of_the_device(
    trust: Callable[..., Device], root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: DatabaseAllowList, device_id: str, user: Any) -> None:
        raise AllowListBusy("The list was busy. Try again.")

    device = trust()
    monkeypatch.setattr(DatabaseAllowList, "map_user", busy)
    response = assign(root, device, staff("robot"))
    assert response.redirect_chain == [(page_of(device), 302)]
    assert "The list was busy. Try again." in text_of(response)


# --- the journal -----------------------------------------------------------------------------------------------------


def test_the_page_of_a_device_tells_its_history(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    DatabaseAllowList(by="alice").set_permissions(device.device_id, {"shell": True})
    revoke(root, device, reason="lost")
    page = text_of(root.get(page_of(device))).partition(" Journal ")[2]
    for expected in ("added", "Name: laptop", "Permissions: none → shell", ", by alice", "Reason: lost", ", by root"):
        assert expected in page
    assert page.index("Reason: lost") < page.index("none → shell") < page.index("Name: laptop")


def test_a_forged_line_is_marked_and_not_believed(trust: Callable[..., Device], root: Client) -> None:
    device = trust()
    AllowListChange.objects.create(
        revision=99, device_id=device.device_id, action="changed", at=timezone.now(), by="root", mac="0" * 64,
        row='{"friendly_name": "forged name", "role": 7}',
    )  # fmt: skip
    AllowListChange.objects.create(
        revision=100, device_id=device.device_id, action="x\u202ey", at=timezone.now(), by="\u202e", mac="",
        row="not json",
    )  # fmt: skip
    # Not even who did it, or when, can be altered.
    for by, moment in (("somebody else", timezone.now()), ("", timezone.now() - dt.timedelta(days=1))):
        trust(by)
        AllowListChange.objects.filter(pk=AllowListChange.objects.latest("pk").pk).update(by=by, at=moment)
    page = text_of(root.get(page_of(device)))
    assert page.count("Amesh did not write this line") == 2
    assert "forged name" not in page
    assert "\u202e" not in page
    assert text_of(root.get(JOURNAL)).count("NO: forged") == 4


def test_a_device_without_a_journal_and_one_with_a_long_one(
    trust: Callable[..., Device], root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = trust()
    AllowListChange.objects.all().delete()
    assert "The journal has nothing about this device" in text_of(root.get(page_of(device)))
    monkeypatch.setattr("amesh_django.admin.history.MOST", 3)
    for number in range(4):
        DatabaseAllowList().set_permissions(device.device_id, {"n": number})
    page = root.get(page_of(device))
    assert len(page.context["amesh_history"]) == 3
    assert "n: 2 → n: 3" in text_of(page)


def test_the_journal_is_for_those_who_may_see_it(trust: Callable[..., Device]) -> None:
    device = trust()
    client = logged_in(staff("auditor", "view_allowlistchange"))
    assert device.device_id in text_of(client.get(JOURNAL))
    assert logged_in(staff("viewer", "view_device")).get(JOURNAL).status_code == 403
