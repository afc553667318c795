"""Servers and hubs in the admin: their state, what may be done to them, and what the page of a device says about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import servers
from amesh_django.models import AllowListSeal, Device, Hub, Server
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import LocalDevice
from tests.admin.people import logged_in, page_of, revoke, staff, text_of
from tests.fleet.hubs import TestHub

pytestmark = pytest.mark.django_db

SERVERS, HUBS = "/admin/amesh/server/", "/admin/amesh/hub/"
Trust = Callable[..., EphemeralDevice]


@pytest.fixture
def api(amesh_trust: Trust) -> Server:
    device = amesh_trust(EphemeralDevice("api"), "target")
    return servers.add(device.identity.device_id, "https://api.example/amesh/", by="alice")


@pytest.fixture
def boss() -> Client:
    return logged_in(staff("boss", "view_server", "manage_server", "view_hub", "view_device", "revoke_device"))


def up_to_date(row: Server) -> None:
    found = servers.head()
    Server.objects.filter(pk=row.pk).update(epoch=found.epoch, acked=found.revision)


def test_a_server_is_shown(api: Server, boss: Client) -> None:
    text = text_of(boss.get(SERVERS))
    assert "api" in text and "waiting" in text and "the whole list" in text and "Select" not in text
    Server.objects.update(epoch=servers.head().epoch)
    assert "1 change, for" in text_of(boss.get(SERVERS))
    refused = '[{"serial": 4, "device": "am_x", "event": "trust", "why": "max_controllers", "at": ""}, 7]'
    Server.objects.update(last_error="<b>down</b>", attempts=2, refused_json=refused)
    page = boss.get(f"{SERVERS}{api.pk}/change/")
    text = text_of(page)
    assert "failing" in text and "trust am_x : max_controllers" in text and "alice" in text
    assert b"<b>down</b>" not in page.content and "It is tried again by itself." in text
    Server.objects.update(url="https://thief.example/amesh/")
    page = boss.get(f"{SERVERS}{api.pk}/change/")
    assert "changed outside Django" in text_of(page) and b"/pause/" not in page.content


@pytest.mark.parametrize("action", ["pause", "retry"])
def test_an_action_asks_first(api: Server, boss: Client, action: str) -> None:
    Server.objects.update(attempts=3)
    url = f"{SERVERS}{api.pk}/{action}/"
    assert url in boss.get(f"{SERVERS}{api.pk}/change/").content.decode()
    assert boss.get(url).status_code == 200
    found = Server.objects.get()
    assert (found.enabled, found.attempts) == (True, 3)  # a question changes nothing
    assert boss.post(url, follow=True).status_code == 200
    found = Server.objects.get()
    assert (found.enabled, found.attempts) == ((False, 0) if action == "pause" else (True, 0))
    assert LogEntry.objects.count() == 1
    if action == "pause":
        assert "paused" in text_of(boss.get(SERVERS))
        boss.post(f"{SERVERS}{api.pk}/resume/")
        assert Server.objects.get().enabled and servers.is_genuine(Server.objects.get())


def test_who_may_only_look(api: Server) -> None:
    reader = logged_in(staff("reader", "view_server"))
    page = reader.get(f"{SERVERS}{api.pk}/change/")
    assert page.status_code == 200 and b"/pause/" not in page.content
    for name in ("pause", "resume", "retry"):
        assert reader.post(f"{SERVERS}{api.pk}/{name}/").status_code == 403
    assert reader.post(f"{SERVERS}{api.pk}/delete/").status_code == 403
    assert reader.get(f"{SERVERS}add/").status_code == 403
    assert reader.get(HUBS).status_code == 403
    assert Server.objects.get().enabled


def test_after_revoking_the_page_says_who_knows(api: Server, boss: Client, amesh_trust: Trust) -> None:
    laptop = amesh_trust(EphemeralDevice("laptop"))
    device = Device.objects.get(device_id=laptop.identity.device_id)
    answer = revoke(boss, device, follow=True)
    assert "0 of 1 server has confirmed it. The others are being told." in text_of(answer)
    up_to_date(api)
    assert "Its last change: 1 of 1 server has confirmed it." in text_of(boss.get(page_of(device)))


def test_without_servers_nothing_is_said(boss: Client, amesh_trust: Trust) -> None:
    laptop = amesh_trust(EphemeralDevice("laptop"))
    device = Device.objects.get(device_id=laptop.identity.device_id)
    assert "confirmed" not in text_of(revoke(boss, device, follow=True))
    assert "In the fleet" not in text_of(boss.get(page_of(device)))


def test_a_hub_and_its_words(amesh_server: LocalDevice, boss: Client, amesh_trust: Trust) -> None:
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    hub.greet()
    laptop = amesh_trust(EphemeralDevice("laptop"))
    hub.say(hub.event("revoke", laptop, reason="lost <it>"))
    text = text_of(boss.get(HUBS))
    assert "heard" in text and "1 of 1" in text
    page = text_of(boss.get(f"{HUBS}{Hub.objects.get().pk}/change/"))
    assert hub.id in page and "May: revoke" in page
    answer = boss.get(page_of(Device.objects.get(device_id=laptop.identity.device_id)))
    assert f"The hub {hub.id} revoked it" in text_of(answer) and b"lost <it>" not in answer.content
    DatabaseAllowList(by="boss").revoke(hub.id)
    page = text_of(boss.get(f"{HUBS}{Hub.objects.get().pk}/change/"))
    assert f"manage.py amesh_hubs forget {hub.id}" in page
    Hub.objects.update(applied=9)
    assert "changed outside Django" in text_of(boss.get(HUBS))


def test_a_rejected_list_breaks_no_page(api: Server, boss: Client) -> None:
    AllowListSeal.objects.update(hmac="0" * 64)
    lifecycle.reset()
    assert "not known" in text_of(boss.get(SERVERS))
    assert boss.get(f"{SERVERS}{api.pk}/change/").status_code == 200
