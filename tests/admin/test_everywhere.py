"""Every page of amesh in the admin, found by its links: nothing that keeps people out (axe-core), no break of a strict CSP, no overflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Error, Page

from tests.admin.browsing import Site, fleet, open_page, running
from tests.support import axe, databases

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.long]

START = "/admin/amesh/"
#: Widths of the screen: a phone, a desktop at 200 %, a desktop.
WIDTHS = (390, 640, 1280)
#: JavaScript: the addresses of all links.
LINKS = "() => [...document.links].map(link => link.href)"
#: JavaScript: collect what the policy forbids.
LISTEN = """() => {
  window.forbidden = [];
  document.addEventListener('securitypolicyviolation', event => window.forbidden.push(
    `${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile || ''} ${event.sample || ''}`));
}"""
#: JavaScript: the elements that are wider than the screen, and that no container scrolls.
TOO_WIDE = """() => {
  const over = document.scrollingElement.scrollWidth - innerWidth;
  if (over <= 0) return '';
  const wide = [...document.body.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > innerWidth + 1);
  return `${over} pixels: ` + wide.slice(-2).map(one => one.outerHTML.slice(0, 120)).join(' | ');
}"""


@pytest.fixture
def site(
    sqlite_database: dict[str, str], tmp_path: Path, settings: Any, django_db_blocker: Any, monkeypatch: Any
) -> Iterator[Site]:
    monkeypatch.setenv("TEST_CSP", "1")
    with (
        django_db_blocker.unblock(),
        databases.as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings) as found,
    ):
        fleet()
        yield found


def kind_of(url: str) -> str:
    """Return what pages of one kind have in common: an address without numbers, and the names of its parameters."""
    parts = urlsplit(url)
    names = sorted({*re.findall(r"(?:^|&)([^=&]+)=", parts.query)} - {"_changelist_filters"})
    return re.sub(r"/(\d+|am_[\w-]+)(?=/|$)", "/…", parts.path) + ("?" + "&".join(names) if names else "")


def everywhere(page: Page) -> Iterator[str]:
    """Go to one page of each kind that links lead to, beginning with the start page."""
    seen, waiting = {kind_of(START)}, [START]
    while waiting:
        url = waiting.pop(0)
        try:
            response = page.goto(url)
        except Error as error:
            assert "Download is starting" in error.message, url
            continue
        if response is None or "text/html" not in response.headers.get("content-type", ""):
            continue
        assert response.status == 200, f"{url}: {response.status}"
        yield url
        for link in page.evaluate(LINKS):
            parts = urlsplit(link)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            # Filters can be combined at will: one at a time shows each.
            if parts.path.startswith(START) and (kind := kind_of(target)) not in seen and "&" not in kind:
                seen.add(kind)
                waiting.append(target)


def test_every_page_can_be_used_by_everyone(site: Site, browser: Browser) -> None:
    program, kinds = axe.source(), set[str]()
    wrong: dict[str, str] = {}  # what → where it was found first

    def note(where: str, what: Iterable[str]) -> None:
        for one in what:
            wrong.setdefault(one, where)

    for scheme in ("light", "dark"):
        page = open_page(browser, site, scheme)
        page.add_init_script(f"({LISTEN})()")
        page.on("pageerror", lambda error: note("script", [str(error)]))
        for url in everywhere(page):
            kinds.add(kind_of(url))
            where = f"{scheme} {url}"
            note(where, (f"breaks the policy: {one}" for one in page.evaluate("() => window.forbidden")))
            page.evaluate(program)
            note(where, page.evaluate(axe.CHECK, list(axe.TAGS)))
            if scheme == "light":
                note(where, _too_wide(page))
        page.context.close()
    assert len(kinds) >= 20, sorted(kinds)
    assert not wrong, "\n".join(f"{where}: {what}" for what, where in wrong.items())


def _too_wide(page: Page) -> Iterator[str]:
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if over := page.evaluate(TOO_WIDE):
            yield f"{page.url} is too wide at {width}, by {over}"
