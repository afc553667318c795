"""The admin in a real browser, against a real server: view, revoke, fix; light and dark, on a desktop and on a phone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect, sync_playwright

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device, DeviceActivity
from amesh_django.test.devices import EphemeralDevice
from tests.support import databases, services

pytestmark = pytest.mark.process

T = TypeVar("T")

LIST = "/admin/amesh/device/"
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}

OVERFLOW = "document.scrollingElement.scrollWidth - innerWidth"
# The lowest contrast (WCAG 2) between the text of our own elements and its background, and the element that has it.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = color => {
    const [r, g, b] = rgba(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return 'white';
  };
  const found = [...document.querySelectorAll('[class*=amesh-], [class*=amesh-] :is(p, h2, li, code, ins, del)')]
    .filter(e => e.textContent.trim() && e.getClientRects().length && getComputedStyle(e).opacity === '1')
    .map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), `${e.tagName}.${e.className}`];
    }).sort((x, y) => x[0] - y[0]);
  return found.length ? found[0] : [21, 'nothing'];
}"""


def aside(work: Callable[[], T]) -> T:
    """Run *work* in a thread: this one has the event loop of Playwright, in which the ORM raises SynchronousOnlyOperation."""

    def run() -> T:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def fill() -> list[str]:
    """Add typical devices and some with hostile names. Return their device IDs, oldest first."""
    get_user_model().objects.create_superuser("root", password="secret")
    robot = get_user_model().objects.create_user("robot")
    trusted = DatabaseAllowList(by="command")
    ids = []
    names = ("build server", "Anna’s laptop", "old phone", "M" * 300, "\u202e<b>evil</b>", "scanner")
    for number, name in enumerate(names):
        entry = EphemeralDevice(name).entry(permissions={"shell": True} if number == 1 else None)
        trusted.add(entry)
        ids.append(entry.device_id)
    trusted.map_user(ids[0], robot)
    trusted.revoke(ids[2], reason="left on the train", by="root")
    for name, hours in ((ids[0], 0), (ids[1], 70)):
        moment = timezone.now() - dt.timedelta(hours=hours)
        DeviceActivity.objects.create(device=Device.objects.get(device_id=name), last_seen_at=moment)
    return ids


class Site:
    """A running server and its devices."""

    def __init__(self, url: str, ids: list[str]) -> None:
        self.url = url
        self.ids = ids

    def device(self, number: int) -> str:
        pk = aside(lambda: Device.objects.get(device_id=self.ids[number]).pk)
        return f"{LIST}{pk}/change/"

    def tamper(self) -> None:
        """Change a row outside Django."""

        def update() -> None:
            with connection.cursor() as cursor:
                cursor.execute("UPDATE amesh_device SET role = 'target' WHERE device_id = %s", [self.ids[5]])

        aside(update)


@contextmanager
def running(database: dict[str, str], directory: Path, settings: Any) -> Iterator[Site]:
    EphemeralDevice("server").write(directory, max_controllers=100)
    settings.AMESH = {"DIR": str(directory)}
    lifecycle.reset()
    ids = fill()
    env = {
        **databases.environment(database),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "AUTH_MESH_DIR": str(directory),
    }
    with services.serve(services.runserver("--insecure"), env=env) as process:  # --insecure: the admin's static files
        yield Site(process.url, ids)
    lifecycle.reset()


@pytest.fixture
def site(default_database: dict[str, str], tmp_path: Path, settings: Any) -> Iterator[Site]:
    """A server, with each database in turn."""
    with running(default_database, tmp_path / "device", settings) as found:
        yield found


@pytest.fixture
def sqlite_site(
    sqlite_database: dict[str, str], tmp_path: Path, settings: Any, django_db_blocker: Any
) -> Iterator[Site]:
    """A server with SQLite, for tests of the layout, which does not depend on the database."""
    with (
        django_db_blocker.unblock(),
        databases.as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings) as found,
    ):
        yield found


@pytest.fixture
def browser(chromium: Path) -> Iterator[Browser]:
    """Chromium, for one test: its event loop must not outlive it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Browser, site: Site, scheme: Any = "light", screen: str = "desk") -> Page:
    """Return a page with a user who is logged in."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        base_url=site.url, color_scheme=scheme, viewport={"width": width, "height": height}, has_touch=screen == "phone"
    )
    page = context.new_page()
    page.goto("/admin/login/")
    page.fill("#id_username", "root")
    page.fill("#id_password", "secret")
    page.click("[type=submit]")
    expect(page.get_by_role("heading", name="Site administration")).to_be_visible()
    return page


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
    page.get_by_role("button", name="Revoke 1 device").click()
    expect(page.get_by_text("Enter a reason")).to_be_visible()
    page.get_by_label("Reason").fill("stolen on Friday")
    page.get_by_role("button", name="Revoke 1 device").click()
    expect(page.get_by_text(f"Revoked: {site.ids[1]}")).to_be_visible()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_fits_the_screen_and_has_enough_contrast(
    sqlite_site: Site, browser: Browser, tmp_path: Path, scheme: str, screen: str
) -> None:
    site = sqlite_site
    page = open_page(browser, site, scheme, screen)

    def look(name: str) -> None:
        page.wait_for_load_state("load")
        page.screenshot(path=tmp_path / f"{name}-{scheme}-{screen}.png", full_page=True)
        assert page.evaluate(OVERFLOW) <= 0, name
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{name}: {where} has a contrast of {ratio:.2f}"

    def walk(kind: str) -> None:
        page.goto("/admin/")
        look(f"{kind}-index")
        for name, url in (
            ("app", "/admin/amesh/"),
            ("list", LIST),
            ("journal", "/admin/amesh/allowlistchange/"),
            ("mapped", site.device(0)),
            ("revoked", site.device(2)),
            ("long", site.device(3)),
            ("revoke", f"{LIST}revoke/?devices={','.join(site.ids)}"),
        ):
            page.goto(url)
            look(f"{kind}-{name}")
        page.get_by_role("button", name="Revoke").click()  # without a reason
        look(f"{kind}-error")

    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 18, 18)")
    walk("sound")
    page.goto(LIST)
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tamper()
    walk("broken")
    page.goto(LIST)
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("The allow list does not match its seal")
    expect(banner).to_contain_text("manage.py amesh_integrity --reseal")
    red, green, blue = page.evaluate("getComputedStyle(document.querySelector('.amesh-banner')).backgroundColor"
                                     ".match(/\\d+/g).map(Number)")  # fmt: skip
    assert red > 100 > max(green, blue)
    page.goto("/admin/")
    expect(page.get_by_text("The allow list does not match its seal")).to_have_count(1)
    page.goto(site.device(0))
    page.get_by_role("link", name="Revoke").click()
    page.get_by_label("Reason").fill("stolen")
    page.get_by_role("button", name="Revoke").click()
    expect(page.locator(".messagelist .success")).to_contain_text("Revoked: ")
    expect(page.locator(".messagelist .error")).to_contain_text("do not match their seal")
    assert aside(lambda: Device.objects.exclude(revoked_at=None).count()) == 2
    aside(lambda: DatabaseAllowList(by="operator").reseal())
    page.goto(LIST)
    expect(page.get_by_role("alert")).to_have_count(0)
