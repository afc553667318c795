"""The start page: what each person sees, that its numbers are those of the lists, and that it costs the same for any number."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import Warning as CheckWarning
from django.core.checks.registry import registry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.admin import start
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.fleet import servers
from amesh_django.models import Device, DeviceActivity
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import LIST, Trust, break_seal, logged_in, staff, text_of

START = "/admin/amesh/"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh() -> None:
    start.reset()


def tiles(client: Client) -> dict[str, tuple[str, str]]:
    """Return label → number and address of the tiles of the page."""
    found = client.get(START).context["start"]
    return {str(tile.label): (str(tile.count), tile.url) for tile in (*found.states, *found.attention)}


def listed(client: Client, url: str) -> int:
    return len(client.get(url).context["cl"].result_list)


def test_each_number_is_that_of_its_list(trust: Trust, root: Client) -> None:
    people = DatabaseAllowList(by="alice")
    now = timezone.now()
    devices = [trust(f"device {number}") for number in range(8)]
    people.revoke(devices[0].device_id, reason="lost")
    people.suspend([devices[1].device_id], reason="away")
    people.grant([devices[2].device_id], Grant(), expires_at=now + dt.timedelta(days=3))
    people.grant([devices[3].device_id], Grant(), expires_at=now + dt.timedelta(days=20))
    for number, days in ((4, 40), (5, 1), (0, 40)):
        DeviceActivity.objects.create(device=devices[number], last_seen_at=now - dt.timedelta(days=days))
    found = tiles(root)
    assert {label: number for label, (number, _url) in found.items()} == {
        "trusted": "6",
        "waits for approval": "0",
        "expired": "0",
        "suspended": "1",
        "denied": "0",
        "revoked": "1",
        "expire within 7 days": "1",
        "expire within 30 days": "2",
        "quiet for 30 days": "1",
    }
    for label, (number, url) in found.items():
        assert url.startswith(LIST), label
        if label == "waits for approval":
            assert url == reverse("admin:amesh_device_approvals")
        else:
            assert listed(root, url) == int(number), label


def test_who_sees_what(trust: Trust, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    trust("laptop")
    api = amesh_trust(EphemeralDevice("api"), "target")
    servers.add(api.identity.device_id, "https://api.example/amesh/", by="alice")
    viewer = text_of(logged_in(staff("viewer", "view_device")).get(START))
    assert "trusted" in viewer and "matches its seal" in viewer and "Servers that need attention" not in viewer
    keeper = text_of(logged_in(staff("keeper", "view_server")).get(START))
    assert "Servers that need attention" in keeper and "api" in keeper and "matches its seal" not in keeper
    token = text_of(logged_in(staff("token", "view_enrollmenttoken")).get(START))
    assert "Servers that" not in token and "trusted" not in token


def test_a_broken_seal_is_said_once(trust: Trust, root: Client) -> None:
    device = trust("laptop")
    break_seal(device)
    text = text_of(root.get(START))
    assert text.count("does not match its seal") == 1 and "matches its seal:" not in text


def test_checks_that_warn_are_named_with_what_to_do(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(**kwargs: Any) -> list[CheckWarning]:
        return [CheckWarning("Something <b>is</b> wrong.", hint="Run manage.py it.", id="amesh.W999")]

    warns.__module__ = "amesh_django.checks.tests"
    monkeypatch.setattr(registry, "registered_checks", {*registry.registered_checks, _tagged(warns)})
    page = root.get(START)
    assert "amesh.W999 Something <b>is</b> wrong. Run manage.py it." in text_of(page)
    assert b"<b>is</b>" not in page.content
    with pytest.MonkeyPatch.context() as patch:  # kept for a minute
        patch.setattr(start, "_run_checks", lambda: pytest.fail("the checks ran again"))
        root.get(START)


def _tagged(check: Any) -> Any:
    check.tags = ("security",)
    return check


def test_the_number_of_queries_is_fixed(
    trust: Trust, root: Client, amesh_trust: Callable[..., EphemeralDevice]
) -> None:
    def cost() -> int:
        root.get(START)
        with CaptureQueriesContext(connection) as queries:
            page = root.get(START)
        assert page.status_code == 200
        return len(queries)

    def add(number: int) -> None:
        api = amesh_trust(EphemeralDevice(f"api {number}"), "target")
        servers.add(api.identity.device_id, f"https://api{number}.example/amesh/", by="alice")
        trust(f"laptop {number}")

    add(0)
    few = cost()
    for number in range(1, 8):
        add(number)
    assert cost() == few and Device.objects.count() == 16
    with CaptureQueriesContext(connection) as queries:
        root.get("/admin/amesh/server/")
    assert len(queries) < 25


def test_wrong_settings_are_said(trust: Trust, root: Client, settings: Any) -> None:
    trust("laptop")
    settings.AMESH = {**settings.AMESH, "UNKNOWN": True}
    lifecycle.reset()
    text = text_of(root.get(START))
    assert "AMESH['UNKNOWN'] is not a setting" in text and "amesh.E001" in text
