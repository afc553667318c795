"""The admin in a real browser, against a real server: revoke and map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from tests.admin.browsing import Site, aside, open_page, running
from tests.admin.people import LIST
from tests.support import databases

pytestmark = pytest.mark.process


@pytest.fixture
def site(default_database: dict[str, str], tmp_path: Path, settings: Any) -> Iterator[Site]:
    """A server, with each database in turn."""
    with running(default_database, tmp_path / "device", settings) as found:
        yield found


@pytest.mark.parametrize("database", databases.EACH_ON_ONE_PAIR, indirect=True)
def test_revoke_in_the_browser(site: Site, browser: Browser) -> None:
    page = open_page(browser, site)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(LIST)
    row = page.get_by_role("row").filter(has_text=site.ids[1])
    expect(row).to_contain_text("trusted")
    row.get_by_role("link", name="Anna’s laptop").click()
    page.get_by_role("link", name="Revoke").click()
    expect(page.get_by_role("main")).to_contain_text(site.ids[1])
    page.get_by_role("button", name="Revoke Anna’s laptop").click()
    expect(page.get_by_text("Enter a reason")).to_be_visible()
    page.get_by_label("Reason").fill("stolen on Friday")
    page.get_by_role("button", name="Revoke Anna’s laptop").click()
    expect(page.get_by_text(f"Revoked: Anna’s laptop ({site.ids[1]})")).to_be_visible()
    expect(page.locator(".field-state")).to_contain_text("revoked")
    expect(page.locator(".field-why_revoked")).to_contain_text("stolen on Friday")
    expect(page.get_by_role("link", name="Revoke")).to_have_count(0)
    page.goto(LIST)
    expect(page.get_by_role("row").filter(has_text=site.ids[1])).to_contain_text("revoked")

    for number in (0, 2, 5):
        page.get_by_role("row").filter(has_text=site.ids[number]).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("Revoke selected devices")
    page.locator("button[name=index]").click()
    expect(page.get_by_role("heading", name="Revoke 2 devices")).to_be_visible()
    expect(page.get_by_role("heading", name="Already revoked, skipped")).to_be_visible()
    page.get_by_label("Reason").fill("the whole room")
    page.get_by_role("button", name="Revoke 2 devices").click()
    expect(page.get_by_text("All their further requests will be rejected")).to_be_visible()
    states = aside(lambda: {row.device_id: row.revoke_reason for row in Device.objects.exclude(revoked_at=None)})
    assert states == {
        site.ids[0]: "the whole room",
        site.ids[1]: "stolen on Friday",
        site.ids[2]: "left on the train",
        site.ids[5]: "the whole room",
    }
    assert aside(lambda: DatabaseAllowList().verify().ok)
    assert not errors


@pytest.mark.parametrize("database", databases.EACH_ON_ONE_PAIR, indirect=True)
def test_map_and_copy_in_the_browser(site: Site, browser: Browser) -> None:
    page = open_page(browser, site)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(site.device(5))
    page.get_by_role("button", name=f"Copy {site.ids[5]}").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == site.ids[5]
    page.get_by_role("combobox").click()
    page.locator(".select2-search__field").last.fill("rob")
    page.get_by_role("option", name="robot").click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("row").filter(has_text=site.ids[5])).to_contain_text("robot")
