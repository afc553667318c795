"""The audit log in the admin: on the page of a device, and as a list."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.models import AuditEvent
from tests.admin.people import (
    JOURNAL,
    Trust,
    logged_in,
    page_of,
    revoke,
    staff,
    text_of,
)


def test_the_page_of_a_device_shows_its_history(trust: Trust, root: Client) -> None:
    device = trust()
    DatabaseAllowList(by="alice").set_permissions(device.device_id, {"shell": True})
    revoke(root, device, reason="lost")
    page = text_of(root.get(page_of(device))).rpartition(" History ")[2]
    for expected in ("trusted", "Name: laptop", "Permissions: none → shell", ", by alice", "Reason: lost", ", by root"):
        assert expected in page
    assert page.index("Reason: lost") < page.index("none → shell") < page.index("Name: laptop")


def test_a_forged_event_is_marked_and_its_contents_are_hidden(trust: Trust, root: Client) -> None:
    device = trust()
    AuditEvent.objects.create(
        revision=99, device_id=device.device_id, kind="change", at=timezone.now(), actor="root", mac="0" * 64,
        subject="forged name", data='{"row": {"friendly_name": "forged name", "role": 7}}',
    )  # fmt: skip
    AuditEvent.objects.create(
        revision=100, device_id=device.device_id, kind="x\u202ey", at=timezone.now(), actor="\u202e", mac="",
        data="not json",
    )  # fmt: skip
    # Author and time of an event cannot be altered either.
    for by, moment in (("somebody else", timezone.now()), ("", timezone.now() - dt.timedelta(days=1))):
        trust(by)
        AuditEvent.objects.filter(pk=AuditEvent.objects.latest("pk").pk).update(actor=by, at=moment)
    page = text_of(root.get(page_of(device)))
    assert "forged name" not in text_of(root.get(JOURNAL))
    assert page.count("Amesh did not write this event") == 2
    assert "forged name" not in page
    assert "\u202e" not in page
    assert text_of(root.get(JOURNAL)).count("Amesh did not write this event") == 4


def test_a_device_without_a_history_and_one_with_a_long_one(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = trust()
    AuditEvent.objects.all().delete()
    assert "The audit log has no event about this device" in text_of(root.get(page_of(device)))
    monkeypatch.setattr("amesh_django.admin.devices.history.MAX_LINES", 3)
    for number in range(4):
        DatabaseAllowList().set_permissions(device.device_id, {"n": number})
    page = root.get(page_of(device))
    assert len(page.context["amesh_history"]) == 3
    assert "n: 2 → n: 3" in text_of(page)
    link = f"{JOURNAL}?q={device.device_id}"
    assert f'<a href="{link}">' in page.content.decode()
    assert text_of(root.get(link)).count(device.device_id) == 4
    viewer = logged_in(staff("viewer", "view_device"))
    assert JOURNAL not in viewer.get(page_of(device)).content.decode()


def test_the_button_for_the_history_leads_to_it(trust: Trust, root: Client) -> None:
    device = trust()
    button = reverse("admin:amesh_device_history", args=[device.pk])
    assert button in root.get(page_of(device)).content.decode()
    response = root.get(button)
    assert response.headers["Location"] == f"{page_of(device)}#amesh-history"
    assert 'id="amesh-history"' in root.get(page_of(device)).content.decode()
    assert Client().get(button).headers["Location"].startswith(reverse("admin:login"))


def test_the_log_shows_names_and_finds_them(trust: Trust, root: Client) -> None:
    device, other = trust("build server"), trust("phone")
    page = text_of(root.get(JOURNAL))
    assert "build server was added" in page and device.device_id in page
    DatabaseAllowList(by="alice").set_permissions(device.device_id, {"shell": True})
    for term in ("build", "server build", device.device_id, device.device_id[:12], "alice"):
        page = text_of(root.get(JOURNAL, {"q": term}))
        assert device.device_id in page, term
        assert other.device_id not in page, term
    assert device.device_id not in text_of(root.get(JOURNAL, {"q": device.device_id[-4:]}))


def test_the_log_needs_a_permission_of_its_own(trust: Trust) -> None:
    device = trust()
    client = logged_in(staff("auditor", "view_auditevent"))
    page = text_of(client.get(JOURNAL))
    assert device.device_id in page
    assert page.startswith("Audit log | ")
    assert "Select event" not in page
    assert logged_in(staff("viewer", "view_device")).get(JOURNAL).status_code == 403


def test_the_page_of_an_event_shows_what_amesh_wrote(trust: Trust, root: Client) -> None:
    device = trust()
    allow_list = DatabaseAllowList(by="alice")
    allow_list.suspend([device.device_id], until=timezone.now() + dt.timedelta(hours=1), reason="audit")
    event = AuditEvent.objects.latest("pk")
    address = reverse("admin:amesh_auditevent_change", args=[event.pk])
    assert address in root.get(JOURNAL).content.decode()
    page = text_of(root.get(address))
    assert f"suspended {device.device_id}" in page
    assert "laptop" in page and "audit" in page and event.mac in page and event.link in page
    AuditEvent.objects.filter(pk=event.pk).update(
        text="nothing to see", subject="another name", data='{"row": "forged"}'
    )
    page = text_of(root.get(address))
    assert "NO: forged" in page
    assert "nothing to see" not in page and "another name" not in page and "&quot;forged" not in page


def test_times_and_groups_in_the_history_are_for_people(trust: Trust, root: Client) -> None:
    device = trust()
    allow_list = DatabaseAllowList(by="alice")
    allow_list.put_group("warehouse", ["stock:read"])
    allow_list.grant([device.device_id], Grant(groups=["warehouse"]))
    allow_list.suspend([device.device_id], until=dt.datetime(2125, 3, 1, 12, tzinfo=dt.UTC))
    page = text_of(root.get(page_of(device))).rpartition(" History ")[2]
    assert "Groups: warehouse" in page
    assert "Suspended until: March 1, 2125" in page


def test_the_page_of_an_event_that_cannot_be_read_says_so(trust: Trust, root: Client) -> None:
    trust()
    event = AuditEvent.objects.latest("pk")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_auditevent SET at = 'never' WHERE id = %s", [event.pk])
    page = text_of(root.get(reverse("admin:amesh_auditevent_change", args=[event.pk])))
    assert "NO: forged" in page
    assert root.get(reverse("admin:amesh_auditevent_change", args=["x"])).status_code == 302
