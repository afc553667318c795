"""The audit log in a real browser, by the keyboard alone: filter, look at an event, export, and verify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.admin.browsing import Site, open_page, running
from tests.admin.people import JOURNAL
from tests.support import databases

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def site(sqlite_database: dict[str, str], tmp_path: Path, settings: Any, django_db_blocker: Any) -> Iterator[Site]:
    with (
        django_db_blocker.unblock(),
        databases.as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings) as found,
    ):
        yield found


def tab_to(page: Page, name: str) -> None:
    """Press Tab until an element with this label or text has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(
            """name => { const e = document.activeElement;
            return [e.labels && e.labels.length ? e.labels[0].innerText : '', e.innerText || ''].some(t => t.trim() === name); }""",
            name,
        ):
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"{name} cannot be reached by the keyboard")


def test_the_log_by_the_keyboard_alone(site: Site, browser: Browser) -> None:
    page = open_page(browser, site)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and errors.append(line.text))
    page.goto(JOURNAL)
    tab_to(page, "Search")
    page.keyboard.type("old phone")
    page.keyboard.press("Enter")
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("root revoked old phone: left on the train")
    expect(rows.first).to_contain_text(site.ids[2])

    tab_to(page, rows.first.locator("th").inner_text())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="root revoked old phone: left on the train")).to_be_visible()
    tab_to(page, "All events by root")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Person")).to_have_value("root")
    expect(rows).to_have_count(1)

    tab_to(page, "JSON lines")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".jsonl")
    assert download.value.path().read_text().count('"kind": "revoke"') == 1
    page.goto(JOURNAL)
    expect(rows.first).to_contain_text("root exported the audit log")

    page.goto(JOURNAL)
    tab_to(page, "Verify now…")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Verify the audit log")).to_be_visible()
    tab_to(page, "Verify now")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The audit log is as amesh wrote it.")).to_be_visible()
    expect(page.get_by_text("by root: it is as amesh wrote it")).to_be_visible()
    assert errors == []
