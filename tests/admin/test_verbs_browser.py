"""What people decide about a device, by the keyboard alone, in a real browser with a strict content security policy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device, RequestCount
from amesh_django.usage.reading import by_day
from amesh_django.usage.writing import DAY, HOUR
from tests.admin.browsing import Site, aside, fits, open_page, press_to, running
from tests.support import axe, databases

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def site(
    sqlite_database: dict[str, str],
    tmp_path: Path,
    settings: Any,
    django_db_blocker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    monkeypatch.setenv("TEST_CSP", "1")
    with (
        django_db_blocker.unblock(),
        databases.as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings) as found,
    ):
        request_often(found.ids[1])
        yield found


def request_often(device_id: str) -> None:
    """Count requests of a device in the last days."""
    for number, day in enumerate(by_day(days=30)):
        start = dt.datetime.combine(day.date, dt.time(), dt.UTC)
        for reason, times in (("", 40 + number * 7 % 90), ("replay_detected", number % 4 * 3)):
            RequestCount.objects.create(period=DAY, start=start, device_id=device_id, reason=reason, times=times or 1)
    hour = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    for route, reason in (("orders/<int:pk>/", ""), ("stock/" + "long-name/" * 12, ""), ("", "replay_detected")):
        RequestCount.objects.create(
            period=HOUR, start=hour, device_id=device_id, route=route, reason=reason, times=len(route) + 1
        )


def usable(page: Page) -> None:
    """Check a page in both colors and at both widths: nothing sticks out, and axe-core finds nothing."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (390, 640, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert fits(page), (page.url, width)
        page.evaluate(axe.source())
        assert page.evaluate(axe.CHECK, list(axe.TAGS)) == [], page.url
    page.emulate_media(color_scheme="light")


def choose(page: Page, label: str) -> None:
    """Follow a link or press a button by the keyboard."""
    press_to(page, label)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def test_suspend_lift_revoke_and_reinstate_by_the_keyboard(site: Site, browser: Browser) -> None:
    device_id, page = site.ids[1], open_page(browser, site)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # What has no address comes from axe-core, which tries styles of its own.
    page.on("console", lambda one: errors.append(one.text) if one.type == "error" and one.location["url"] else None)
    page.goto(site.device(1))
    usable(page)
    state = page.locator(".field-state")

    choose(page, "Suspend…")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Suspend Anna’s laptop")
    usable(page)
    press_to(page, "until it is lifted")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # 1 day
    choose(page, "Suspend Anna’s laptop")
    expect(page.get_by_text("Enter a reason")).to_be_visible()
    usable(page)
    press_to(page, "Reason")
    page.keyboard.type("is at the repair shop")
    choose(page, "Suspend Anna’s laptop")
    expect(page.get_by_text("Suspended: Anna’s laptop")).to_be_visible()
    expect(state).to_contain_text("suspended")

    choose(page, "Lift the suspension…")
    usable(page)
    choose(page, "Lift the suspension of Anna’s laptop")
    expect(state).to_contain_text("trusted")

    choose(page, "Revoke…")
    expect(page.get_by_text("What breaks if it is revoked")).to_be_visible()
    usable(page)
    press_to(page, "Reason")
    page.keyboard.type("sold by mistake")
    choose(page, "Revoke Anna’s laptop")
    expect(state).to_contain_text("revoked")

    choose(page, "Reinstate…")
    usable(page)
    press_to(page, "Full device ID")
    page.keyboard.type(device_id)
    choose(page, "Reinstate Anna’s laptop")
    expect(page.get_by_text("Reinstated: Anna’s laptop")).to_be_visible()
    expect(state).to_contain_text("trusted")

    choose(page, "Permissions, scopes, groups…")
    usable(page)
    choose(page, "Cancel")
    press_to(page, "The numbers")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Accepted")).to_be_visible()
    usable(page)
    done = aside(lambda: [*AuditEvent.objects.filter(device_id=device_id).order_by("-id").values_list("kind", "actor")])
    assert done[:4] == [(kind, "root") for kind in ("reinstate", "revoke", "lift", "suspend")]
    assert aside(lambda: Device.objects.get(device_id=device_id).state) == "active"
    assert aside(lambda: DatabaseAllowList().verify().ok)
    assert not errors
