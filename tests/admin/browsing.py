"""Helpers for the tests of the admin in a real browser: a server with typical devices, and a user who is logged in."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from django.contrib.auth import get_user_model
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Browser, Page

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import servers
from amesh_django.models import Device, DeviceActivity, Hub, Server
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import LIST
from tests.support import databases, services

T = TypeVar("T")

SCREENS = {"desk": (1280, 900), "phone": (390, 844)}


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


def fleet() -> dict[str, str]:
    """Add a server that fails and a hub, and return their pages."""
    edge = EphemeralDevice("edge with a name that is quite long")
    DatabaseAllowList(by="operator").add(edge.entry("target"))
    row = servers.add(edge.identity.device_id, "https://edge.example/a/rather/long/path/amesh/", by="alice")
    refused = [{"serial": 1, "device": edge.identity.device_id, "event": "trust", "why": "max_controllers", "at": ""}]
    Server.objects.update(
        attempts=3, last_error=f"The server answered 403 {'x' * 60}.", refused_json=json.dumps(refused)
    )
    Hub.objects.create(device_id=edge.identity.device_id, url="https://hub.example/amesh/")
    return {
        "servers": "/admin/amesh/server/",
        "server": f"/admin/amesh/server/{row.pk}/change/",
        "pause": f"/admin/amesh/server/{row.pk}/pause/",
        "hubs": "/admin/amesh/hub/",
        "hub": f"/admin/amesh/hub/{Hub.objects.get().pk}/change/",
    }


class Site:
    """A running server and its devices."""

    def __init__(self, url: str, ids: list[str]) -> None:
        self.url = url
        self.ids = ids
        self.session: Any = None

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
def running(database: dict[str, str], directory: Path, settings: Any, theme: str = "") -> Iterator[Site]:
    """Run a server with typical devices.

    Args:
        theme: the app that replaces the look of the admin; none for Django's own.
    """
    EphemeralDevice("server").write(directory, max_controllers=100)
    settings.AMESH = {"DIR": str(directory)}
    lifecycle.reset()
    ids = fill()
    env = {
        **databases.environment(database),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "AUTH_MESH_DIR": str(directory),
        "TEST_ADMIN_THEME": theme,
        "TEST_AMESH_URL": "https://api.example/amesh/",
    }
    with services.serve(services.runserver("--insecure"), env=env) as process:  # --insecure: the admin's static files
        yield Site(process.url, ids)
    lifecycle.reset()


def open_page(browser: Browser, site: Site, scheme: Any = "light", screen: str = "desk") -> Page:
    """Return a page with a user who is logged in. The second page of a browser uses the session of the first."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        base_url=site.url,
        color_scheme=scheme,
        viewport={"width": width, "height": height},
        has_touch=screen == "phone",
        storage_state=site.session,
    )
    page = context.new_page()
    if site.session is None:
        page.goto("/admin/login/?next=/admin/")
        page.fill("[name=username]", "root")
        page.fill("[name=password]", "secret")
        page.click("[type=submit]")
        page.wait_for_url("/admin/", timeout=10_000)
        site.session = context.storage_state()
    return page


def press_to(page: Page, label: str) -> None:
    """Press Tab until the control with a label has the focus. Part of the label is enough."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if label in page.evaluate(_FOCUSED):
            return
    raise AssertionError(f"The keyboard does not reach {label!r}.")


#: JavaScript: the label of the control that has the focus.
_FOCUSED = """() => {
  const one = document.activeElement;
  return [...(one.labels || [])].map(label => label.innerText).join(" ") || one.innerText || "";
}"""


def fits(page: Page) -> bool:
    """Return True if nothing sticks out at the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))
