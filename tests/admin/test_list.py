"""The list of devices in the admin."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device, DeviceActivity
from authmesh.protocol.encoding import b64url_encode
from tests.admin.people import (
    JOURNAL,
    LIST,
    REVOKE,
    Trust,
    page_of,
    revoke,
    staff,
    text_of,
)

HOSTILE = "\u202egniht\u202c\x1b[31m<script>alert(1)</script>\u200b"


def test_the_list_shows_each_device_in_full(trust: Trust, root: Client) -> None:
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


def test_the_page_of_a_device_names_it_in_title_and_breadcrumbs(trust: Trust, root: Client) -> None:
    device = trust("ci-runner-6")
    page = root.get(page_of(device)).content.decode()
    shown = f"ci-runner-6 ({device.device_id})"
    assert f"<title>{shown} | " in page
    assert f'<li aria-current="page">{shown}</li>' in page or f"&rsaquo; {shown}" in page


def test_the_number_of_queries_does_not_depend_on_the_number_of_devices(trust: Trust, root: Client) -> None:
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
    assert few[0] <= 14


def test_search(trust: Trust, root: Client) -> None:
    device, other = trust("build server"), trust("phone")
    DatabaseAllowList().map_user(device.device_id, staff("robot"))
    key = device.to_entry().public_key
    in_url = b64url_encode(key)
    for term in (
        "BUILD",
        "server build",
        '"build server"',
        device.device_id,
        device.device_id[:12],
        "rob",
        "build robot",
    ):
        page = text_of(root.get(LIST, {"q": term}))
        assert device.device_id in page, term
        assert other.device_id not in page, term
    for term in (device.public_key, device.public_key[:12], in_url, in_url[:12], f"{device.public_key[:12]} build"):
        assert device.device_id in text_of(root.get(LIST, {"q": term})), term


def test_a_short_word_does_not_find_random_ids_and_keys(trust: Trust, root: Client) -> None:
    """Device IDs and keys contain every short word by chance, and every key begins with an A."""
    device = trust("build server")
    middle = (device.device_id[4:9], device.device_id[-4:], device.public_key[:3], device.public_key[3:12], "server x")
    for term in middle:
        assert device.device_id not in text_of(root.get(LIST, {"q": term})), term


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
def test_filters(trust: Trust, root: Client, query: str, expected: set[str]) -> None:
    rows = {name: trust(name, role="target" if name == "target" else "controller") for name in
            ("seen", "never", "target", "revoked")}  # fmt: skip
    DatabaseAllowList().map_user(rows["seen"].device_id, staff("robot"))
    DatabaseAllowList().revoke(rows["revoked"].device_id)
    for name, days in (("seen", 0), ("target", 3), ("revoked", 90)):
        moment = timezone.now() - dt.timedelta(days=days)
        DeviceActivity.objects.create(device=rows[name], last_seen_at=moment)
    shown = root.get(f"{LIST}?{query}", follow=True).content.decode()
    assert {name for name, row in rows.items() if row.device_id in shown} == expected


def test_every_column_sorts_and_devices_never_seen_are_the_oldest(trust: Trust, root: Client) -> None:
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


def test_a_hostile_name_is_harmless_everywhere(trust: Trust, root: Client) -> None:
    device = trust(HOSTILE)
    pages = [
        root.get(LIST),
        root.get(page_of(device)),
        root.get(REVOKE, {"devices": device.device_id}),
        revoke(root, device, follow=True),
        root.get(JOURNAL),
        root.get(reverse("admin:index")),
    ]
    for page in pages:
        content = page.content.decode()
        assert page.status_code == 200
        assert "<script>alert" not in content
        assert not set("\u202e\u202c\u200b\x1b") & set(content)
    for page in pages[:4]:
        assert "gniht&lt;script&gt;alert(1)&lt;/script&gt;" in page.content.decode()


def test_a_nameless_device_can_still_be_clicked(trust: Trust, root: Client) -> None:
    trust("\u200b")
    assert ">(no name)</a>" in root.get(LIST).content.decode()
