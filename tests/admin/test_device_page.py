"""The page of one device: what it is, how it came, what it does, and what would break without it."""

from __future__ import annotations

import dataclasses
import datetime as dt

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device, DeviceActivity, RequestCount
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust.chain import Actor
from authmesh.device import LocalDevice
from authmesh.device.grants import Grant
from tests.admin.people import REVOKE, Trust, logged_in, page_of, staff, text_of
from tests.enrollment.machines import come, make
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub
from tests.fleet.servers import add_server


def counted(device: Device, times: int, *, route: str = "", reason: str = "", period: str = "hour") -> None:
    start = timezone.now().replace(minute=0, second=0, microsecond=0)
    start = start.astimezone(dt.UTC).replace(hour=0) if period == "day" else start
    RequestCount.objects.create(
        period=period, start=start, device_id=device.device_id, route=route, reason=reason, times=times
    )


def row_of(device: EphemeralDevice) -> Device:
    return Device.objects.get(device_id=device.identity.device_id)


def test_the_page_has_everything_that_is_known(trust: Trust, root: Client) -> None:
    people = DatabaseAllowList(by="anna")
    device = trust("till 4", permissions={"notes": True, "scopes": ["orders:read"]})
    people.put_group("store", ["stock:read"])
    people.grant([device.device_id], Grant(groups=["store"]))
    people.set_expiry([device.device_id], timezone.now() + dt.timedelta(days=9))
    people.set_note(device.device_id, "by the door")
    people.request_rotation([device.device_id])
    DeviceActivity.objects.create(
        device=device, last_seen_at=timezone.now(), address="10.1.2.3", route="orders/<int:pk>/", client="curl/8"
    )
    page = root.get(page_of(device))
    text = text_of(page)
    for expected in (
        "by the door",
        "orders:read; by its groups: stock:read",
        "Groups: store",
        "10.1.2.3",
        "orders/<int:pk>/",
        "curl/8",
        "just now",
        "Asked for a new key: ",
        "Expires: ",
    ):
        assert expected in text, expected
    assert "Permissions: notes Scopes:" in text
    html = page.content.decode()
    assert html.index(f"<h1>till 4 ({device.device_id})</h1>") < html.index("Revoke…") < html.index("Device ID:")


def test_requests_are_drawn_and_tell_what_breaks(trust: Trust, root: Client) -> None:
    device, other = trust("till"), trust("idle")
    counted(device, 1200, route="orders/<int:pk>/")
    counted(device, 7)
    counted(device, 3, reason="replay_detected")
    counted(device, 1207, period="day")
    counted(device, 3, reason="replay_detected", period="day")
    page = root.get(page_of(device))
    text = text_of(page)
    assert "orders/<int:pk>/ 1200" in text and "other paths 7" in text and "replay_detected 3" in text
    assert "1,207 accepted and 3 refused in 30 days." in text
    assert 'role="img"' in page.content.decode()
    assert "orders/<int:pk>/ 1200" in text_of(root.get(REVOKE, {"devices": device.device_id}))
    for url in (page_of(other), f"{REVOKE}?devices={other.device_id}"):
        assert "None of its requests was accepted in the last day." in text_of(root.get(url))
    assert "orders" not in text_of(root.get(REVOKE, {"devices": f"{device.device_id},{other.device_id}"}))


def test_the_page_says_how_the_device_came(root: Client, amesh_server: LocalDevice) -> None:
    machine, by_hand, paired = EphemeralDevice("m"), EphemeralDevice("h"), EphemeralDevice("p")
    token = make()
    come(token, machine)
    anna = DatabaseAllowList(by=Actor("anna", "user"))
    anna.add(dataclasses.replace(by_hand.entry(), added_by="manual"))
    anna.add(dataclasses.replace(paired.entry(), added_by="handshake"))
    newer = EphemeralDevice("p2")
    assert ask(paired, newer, amesh_server).status_code == 200
    hub, told = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll"), EphemeralDevice("t")
    hub.greet()
    hub.say(hub.trust(told))
    for device, how in (
        (machine, f"with the enrollment token {token.jti}"),
        (by_hand, "added by hand, by anna"),
        (paired, "paired, by anna"),
        (newer, f"with a new key: rotation of {paired.identity.device_id}"),
        (told, f"by the hub {hub.id}"),
    ):
        assert f"How it came: {how}" in text_of(root.get(page_of(row_of(device)))), how


def test_the_page_names_the_servers_that_have_not_confirmed_the_last_change(trust: Trust, root: Client) -> None:
    device = trust("till")
    add_server(device=EphemeralDevice("berlin <b>"))
    DatabaseAllowList(by="anna").revoke(device.device_id, reason="lost")
    page = root.get(page_of(device))
    text = text_of(page)
    assert "0 of 1 server has confirmed it." in text
    assert "Servers that have not confirmed it" in text and "berlin <b> waiting" in text
    assert b"berlin <b>" not in page.content


def test_a_user_who_only_views_is_offered_nothing(trust: Trust) -> None:
    page = logged_in(staff("staff", "view_device")).get(page_of(trust()))
    assert page.context["amesh_verbs"] == [] and "Revoke…" not in text_of(page)


def test_the_number_of_queries_is_fixed(trust: Trust, root: Client) -> None:
    device = trust("till")

    def queries() -> int:
        with CaptureQueriesContext(connection) as found:
            assert root.get(page_of(device)).status_code == 200
        return len(found)

    add_server("https://a.example/amesh/")
    counted(device, 1, route="a/")
    DatabaseAllowList(by="anna").set_note(device.device_id, "0")
    queries()  # what is read once per process
    few = queries()
    for number in range(1, 12):
        counted(device, number, route=f"path/{number}/")
        DatabaseAllowList(by="anna").set_note(device.device_id, str(number))
        trust(f"other {number}")
    for name in ("b", "c"):
        add_server(f"https://{name}.example/amesh/")
    queries()
    assert queries() == few
    assert few <= 40, few
