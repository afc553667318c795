"""The look of the admin in Chromium: Django's own, unfold, and jazzmin; light and dark, on a desktop and on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from tests.admin.browsing import SCREENS, Site, aside, fleet, open_page, running
from tests.admin.people import JOURNAL, LIST, REVOKE
from tests.support import databases

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: JavaScript: let the page handle a new size of the screen, and finish what moves or fades because of it.
SETTLE = """async () => {
  for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  document.getAnimations().forEach(animation => animation.finish());
}"""
#: JavaScript: by how many pixels the page or its table is too wide.
OVERFLOW = """() => {
  const table = document.querySelector('#result_list');
  return Math.max(document.scrollingElement.scrollWidth, table ? table.getBoundingClientRect().right : 0) - innerWidth;
}"""
#: JavaScript: the contrast (WCAG 2) between the text of each of our elements and what is behind it, lowest first, and the
#: lightness of the page.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const behind = element => element
    ? over(rgba(getComputedStyle(element).backgroundColor), behind(element.parentElement)) : [255, 255, 255];
  const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ours = ':is([class^=amesh-], [class*=" amesh-"]):not(body)';
  const found = [...document.querySelectorAll(`${ours}, ${ours} :is(p, h2, li, code, ins, del)`)]
    .filter(e => e.textContent.trim() && e.getClientRects().length && getComputedStyle(e).opacity === '1')
    .map(e => {
      const [a, b] = [light(over(rgba(getComputedStyle(e).color), behind(e))), light(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), `${e.tagName}.${e.className}`];
    }).sort((x, y) => x[0] - y[0]);
  return [found, light(behind(document.querySelector('#content-main, #content, main') || document.body))];
}"""


THEMES = ("django", "unfold", "jazzmin")
#: The themes bring templates of their own. Django's are looked at with both versions of Django.
#: A theme whose class of model admins is the base of ours has "+" after its name.
EVERY_PAGE = ("django", *(pytest.param(theme, marks=pytest.mark.unversioned) for theme in THEMES[1:]))


@pytest.fixture(params=THEMES)
def site(
    request: Any,
    sqlite_database: dict[str, str],
    tmp_path: Path,
    settings: Any,
    django_db_blocker: Any,
    monkeypatch: Any,
) -> Iterator[Site]:
    """A server with each theme in turn, and SQLite: the look does not depend on the database."""
    theme = request.param.removeprefix("django").removesuffix("+")
    if request.param.endswith("+"):
        monkeypatch.setenv("TEST_AMESH", json.dumps({"ADMIN_BASE": f"{theme}.admin.ModelAdmin"}))
    with (
        django_db_blocker.unblock(),
        databases.as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings, theme) as found,
    ):
        yield found


#: The screens of each color scheme. A page is loaded on the first of them, and then the screen gets the size of the second.
SCHEMES = {"light": ("phone", "desk"), "dark": ("desk", "phone")}


class Looking:
    """Pages of a site, light and dark, on each screen, and what is wrong with them."""

    def __init__(self, browser: Browser, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.wrong: list[str] = []
        self.pages = {scheme: open_page(browser, site, scheme, screens[0]) for scheme, screens in SCHEMES.items()}
        for kind, page in self.pages.items():
            page.on("pageerror", lambda error, kind=kind: self.wrong.append(f"{kind}: {error}"))
            page.on(
                "console", lambda line, kind=kind: line.type == "error" and self.wrong.append(f"{kind}: {line.text}")
            )

    def visit(self, name: str, url: str) -> None:
        """Look at a page in each way."""
        for scheme, page in self.pages.items():
            self.resize(page, SCHEMES[scheme][0])
            page.goto(url)
            self.look(scheme, page, name)

    def look(self, scheme: str, page: Page, name: str) -> None:
        """Look at the page that is shown, on each screen."""
        page.wait_for_load_state("load")
        for screen in SCHEMES[scheme]:
            self.resize(page, screen)
            self.look_once(f"{scheme}-{screen}", page, name)

    @staticmethod
    def resize(page: Page, screen: str) -> None:
        width, height = SCREENS[screen]
        page.set_viewport_size({"width": width, "height": height})

    def look_once(self, kind: str, page: Page, name: str) -> None:
        wrong = []
        page.evaluate(SETTLE)
        if (overflow := page.evaluate(OVERFLOW)) > 0:
            wrong.append(f"{overflow} pixels too wide")
        found, lightness = page.evaluate(CONTRAST)
        wrong += [f"{where} has a contrast of {ratio:.2f}" for ratio, where in found if ratio < 4.5]
        if not (lightness > 0.8 if kind.startswith("light") else lightness < 0.2):
            wrong.append(f"the page has a lightness of {lightness:.2f}")
        if wrong:
            page.screenshot(path=self.folder / f"{kind}-{name}.png", full_page=True)
            self.wrong += [f"{kind} {name}: {one}" for one in wrong]


@pytest.mark.long
@pytest.mark.parametrize("site", EVERY_PAGE, indirect=True)
def test_every_page_fits_the_screen_and_has_enough_contrast(site: Site, browser: Browser, tmp_path: Path) -> None:
    looking = Looking(browser, site, tmp_path)
    pages = {
        "index": "/admin/",
        "list": LIST,
        "journal": JOURNAL,
        "event": f"{JOURNAL}{aside(lambda: AuditEvent.objects.latest('pk').pk)}/change/",
        "verify": f"{JOURNAL}verify/",
        "mapped": site.device(0),
        "revoked": site.device(2),
        "long": site.device(3),
        **aside(fleet),
        "revoke": f"{REVOKE}?devices={','.join(site.ids)}",
    }
    for name, url in pages.items():
        looking.visit(name, url)
    for scheme, page in looking.pages.items():  # they show the last page: send it without a reason
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("Enter a reason")).to_be_visible()
        looking.look(scheme, page, "error")
    page = looking.pages["light"]
    page.goto(LIST)
    expect(page.locator(".amesh-banner")).to_have_count(0)

    site.tamper()
    for name in ("index", "list", "mapped"):
        looking.visit(f"broken-{name}", pages[name])
    page.goto(LIST)
    banner = page.locator(".amesh-banner")
    expect(banner).to_contain_text("The allow list does not match its seal")
    expect(banner).to_contain_text("manage.py amesh_integrity --reseal")
    red, green, blue = banner.evaluate("it => getComputedStyle(it).backgroundColor.match(/\\d+/g).map(Number)")
    assert red > 100 > max(green, blue)
    assert not looking.wrong, f"screenshots are in {tmp_path}:\n" + "\n".join(looking.wrong)
    page.goto("/admin/")
    expect(page.get_by_text("The allow list does not match its seal")).to_have_count(1)

    page.goto(site.device(0))  # revoking works, and says what else is wrong
    page.get_by_role("link", name="Revoke").click()
    page.get_by_label("Reason").fill("stolen")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Revoked: ").first).to_be_visible()
    expect(page.get_by_text("do not match their seal").first).to_be_visible()
    assert aside(lambda: Device.objects.exclude(revoked_at=None).count()) == 2
    aside(lambda: DatabaseAllowList(by="operator").reseal())
    page.goto(LIST)
    expect(page.locator(".amesh-banner")).to_have_count(0)


#: JavaScript: the space before and after the separators of our breadcrumbs, in pixels.
SPACES = """() => [...document.querySelectorAll('.amesh-breadcrumbs li:not([aria-current])')].flatMap(li => {
  const style = getComputedStyle(li, '::after');
  return [parseFloat(style.marginInlineStart), parseFloat(style.marginInlineEnd)];
})"""


@pytest.mark.parametrize("site", [*EVERY_PAGE, pytest.param("unfold+", marks=pytest.mark.unversioned)], indirect=True)
def test_revoke_in_each_theme(site: Site, browser: Browser) -> None:
    page = open_page(browser, site, screen="phone")
    page.goto(site.device(1))
    page.get_by_role("link", name="Revoke").click()
    assert all(space >= 4 for space in page.evaluate(SPACES))  # unfold has breadcrumbs of its own
    page.get_by_label("Reason").fill("stolen on Friday")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text(f"Revoked: Anna’s laptop ({site.ids[1]})")).to_be_visible()
    assert aside(lambda: Device.objects.get(device_id=site.ids[1]).revoke_reason) == "stolen on Friday"
