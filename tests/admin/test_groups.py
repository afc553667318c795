"""Groups of devices in the admin: scopes, members, revoking all of them, who may do it, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from amesh_django import lifecycle
from amesh_django.admin.groups import admin as groups
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.models import AuditEvent, Device
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import Trust, break_seal, logged_in, page_of, staff, text_of

GROUPS = "/admin/amesh/devicegroup/"
TILLS = f"{GROUPS}tills/"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _scopes(amesh_server: Any, settings: Any) -> None:
    settings.AMESH = {
        **settings.AMESH,
        "MAX_CONTROLLERS": 5000,
        "SCOPES": {"orders:read": "Read.", "orders:pay": {"text": "Pay.", "permission": "auth.delete_user"}},
    }
    lifecycle.reset()


def members() -> set[str]:
    return {row.device_id for row in Device.objects.all() if row.groups == ["tills"]}


def change(client: Client, what: str, **given: Any) -> Any:
    return client.post(f"{TILLS}change/", {"what": what, **given}, follow=True)


def test_make_change_and_remove_a_group(trust: Trust, root: Client) -> None:
    first, second = trust("first"), trust("second")
    assert "There is no group" in text_of(root.get(GROUPS))
    assert "a-z" in text_of(root.post(f"{GROUPS}add/", {"name": "Tills!", "scopes": []}))
    made = root.post(f"{GROUPS}add/", {"name": "tills", "scopes": ["orders:read"]}, follow=True)
    assert made.redirect_chain == [(f"{TILLS}change/", 302)] and "The group tills was made" in text_of(made)
    assert "a group of this name already" in text_of(root.post(f"{GROUPS}add/", {"name": "tills"}))
    people = DatabaseAllowList(by="test")
    assert people.groups() == {"tills": {"orders:read"}}

    joined = change(root, "join", devices=f"{first.device_id}\n {second.device_id}")
    assert "2 devices were added" in text_of(joined) and members() == {first.device_id, second.device_id}
    assert page_of(first) in joined.content.decode()
    assert "tills" in text_of(root.get(GROUPS)) and "Members 2" in text_of(root.get(GROUPS))
    assert "is not a device ID" in text_of(change(root, "join", devices="<b>x"))
    assert "No trusted device has" in text_of(change(root, "join", devices="am_AAAAAAAAAAAAAAAA"))
    assert "Select at least one member" in text_of(change(root, "leave"))
    assert "1 device was removed" in text_of(change(root, "leave", device=[first.device_id]))
    assert members() == {second.device_id}

    change(root, "scopes", scopes=["orders:read", "orders:pay"])
    assert people.groups() == {"tills": {"orders:read", "orders:pay"}}
    assert "lose the scopes" in text_of(root.get(f"{TILLS}remove/")) and people.groups()
    assert "The group tills was removed" in text_of(root.post(f"{TILLS}remove/", follow=True))
    assert people.groups() == {} and members() == set()
    assert set(AuditEvent.objects.filter(actor="root").values_list("kind", flat=True)) >= {"grant", "group"}
    assert root.get(f"{TILLS}change/").status_code == 404


def test_revoke_all_members_after_they_were_shown(trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [trust(f"till {number}") for number in range(4)]
    ids, people = [one.device_id for one in devices], DatabaseAllowList(by="test")
    people.put_group("tills", [])
    people.grant(ids[:3], Grant(groups=["tills"]))
    page = root.get(f"{TILLS}revoke/")
    shown = text_of(page)
    assert all(name in shown for name in ids[:3]) and ids[3] not in shown and "either all are revoked" in shown
    listed = page.context["listed"]
    assert "Enter a reason" in text_of(root.post(f"{TILLS}revoke/", {"listed": listed}))
    people.grant([ids[3]], Grant(groups=["tills"]))  # who joins meanwhile was not shown
    monkeypatch.setattr(groups, "MAX_ROWS", 2)
    assert "2 more members follow" in text_of(root.get(f"{TILLS}revoke/"))
    done = root.post(f"{TILLS}revoke/", {"listed": listed, "reason": "sold"}, follow=True)
    assert "2 devices were revoked" in text_of(done) and done.redirect_chain == [(f"{TILLS}revoke/", 302)]
    rows = [Device.objects.get(device_id=name) for name in ids]
    assert [row.is_revoked for row in rows] == [True, True, False, False]
    assert (rows[0].revoke_reason, rows[0].revoked_by, rows[0].revision) == ("sold", "root", rows[1].revision)
    root.post(f"{TILLS}revoke/", {"listed": f"{listed},{ids[3]}", "reason": "sold"})
    assert all(row.is_revoked for row in Device.objects.all())
    assert "no member that can be revoked" in text_of(root.get(f"{TILLS}revoke/"))


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        ((), set()),
        (("grant_device", "revoke_device"), set()),
        (("view_device",), {"view"}),
        (("view_device", "grant_device"), {"view", "change"}),
        (("view_device", "revoke_device"), {"view", "revoke"}),
        (("view_device", "approve_device", "enroll_device", "suspend_device", "reinstate_device"), {"view"}),
    ],
)
def test_permissions(trust: Trust, permissions: tuple[str, ...], allowed: set[str]) -> None:
    device, people = trust("till"), DatabaseAllowList(by="test")
    people.put_group("tills", [])
    people.grant([device.device_id], Grant(groups=["tills"]))
    client = logged_in(staff("clerk", *permissions))
    for name, pages in {
        "view": [GROUPS, f"{TILLS}change/"],
        "change": [f"{GROUPS}add/", f"{TILLS}remove/"],
        "revoke": [f"{TILLS}revoke/"],
    }.items():
        expected = 200 if name in allowed else 403
        assert [client.get(page).status_code for page in pages] == [expected] * len(pages), name
    shown = text_of(client.get(f"{TILLS}change/"))
    assert ("Save the scopes" in shown, "Revoke all members" in shown) == ("change" in allowed, "revoke" in allowed)
    if "change" not in allowed:
        for what in ("scopes", "join", "leave"):
            given = {"scopes": ["orders:read"], "devices": device.device_id, "device": device.device_id}
            assert change(client, what, **given).status_code == 403
        assert (
            client.post(f"{TILLS}remove/").status_code == client.post(f"{GROUPS}add/", {"name": "x"}).status_code == 403
        )
        assert people.groups() == {"tills": frozenset()} and members() == {device.device_id}
    posted = client.post(f"{TILLS}revoke/", {"listed": device.device_id, "reason": "x"})
    assert posted.status_code == (302 if "revoke" in allowed else 403)
    assert Device.objects.get().is_revoked == ("revoke" in allowed)


def test_nobody_grants_what_they_may_not_grant(trust: Trust) -> None:
    device, people = trust("till"), DatabaseAllowList(by="test")
    clerk = logged_in(staff("clerk", "view_device", "grant_device"))
    people.put_group("tills", ["orders:read"])
    assert "orders:pay" not in text_of(clerk.get(f"{TILLS}change/"))
    assert "valid choice" in text_of(change(clerk, "scopes", scopes=["orders:read", "orders:pay"]))
    people.put_group("tills", ["orders:pay"])
    assert "You need: auth.delete_user" in text_of(change(clerk, "join", devices=device.device_id))
    assert members() == set() and people.groups() == {"tills": {"orders:pay"}}
    change(clerk, "scopes", scopes=["orders:pay", "orders:read"])  # what the group has stays
    assert people.groups() == {"tills": {"orders:pay", "orders:read"}}
    change(clerk, "scopes", scopes=[])  # to take away needs no more
    assert people.groups() == {"tills": frozenset()}


def test_a_broken_seal_offers_nothing(trust: Trust, root: Client) -> None:
    device, people = trust("till"), DatabaseAllowList(by="test")
    people.put_group("tills", [])
    break_seal(device)
    for page in (GROUPS, f"{TILLS}change/", f"{TILLS}revoke/", f"{TILLS}remove/"):
        shown = text_of(root.get(page, follow=True))
        assert "does not match its seal" in shown and "The groups cannot be shown now" in shown
    assert "No group can be made now" in text_of(root.get(f"{GROUPS}add/"))


def test_many_members_cost_as_much_as_one(root: Client) -> None:
    people, counts = DatabaseAllowList(by="test"), []
    people.put_group("tills", [])
    for more in (1, 300):
        made = [EphemeralDevice(f"d{number}").entry() for number in range(more)]
        people.add_all(made)
        people.grant([one.device_id for one in made], Grant(groups=["tills"]))
        root.get(f"{TILLS}change/")
        for page in (GROUPS, f"{TILLS}change/", f"{TILLS}revoke/"):
            with CaptureQueriesContext(connection) as queries:
                response = root.get(page)
            counts.append(len(queries))
    assert counts[:3] == counts[3:]
    assert "301 members" in text_of(root.get(f"{TILLS}change/")) and response.status_code == 200
