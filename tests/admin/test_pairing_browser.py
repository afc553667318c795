"""Pairing in Chromium with the keyboard alone, with a real relay and a real `amesh invite`: in a thread, over a WebSocket, by Celery."""

from __future__ import annotations

import datetime as dt
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from amesh_django import lifecycle
from amesh_django.models import AuditEvent, Device, PairingSession
from amesh_django.pairing import sessions
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust.sealing import now
from tests.admin.browsing import Site, aside, open_page
from tests.admin.pairing_desk import PAIR
from tests.admin.people import staff
from tests.admin.test_everywhere import LISTEN, TOO_WIDE, WIDTHS
from tests.commands.pairing_terminals import Machine, machine, verification_code, wrong
from tests.fleet.sites import Program
from tests.relay.relay_world import address, serving
from tests.support import axe, databases, services

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.long]

SCOPES = {"orders:read": "Read orders.", "orders:write": "Write orders."}
#: JavaScript: remember each message of a WebSocket, and each answer to the script.
WATCH = """() => {
  window.told = []; window.asked = 0;
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...given) { super(...given); this.addEventListener('message', event => window.told.push(event.data)); }
  };
  const fetch = window.fetch;
  window.fetch = (...given) => { window.asked += 1; return fetch(...given); };
}"""


@dataclass
class Served:
    """A server with the admin, and the laptop of the person."""

    site: Site
    laptop: Machine


@contextmanager
def served(
    argv: Sequence[str], database: dict[str, str], folder: Path, settings: Any, relay: str | None = None, **env: str
) -> Iterator[Served]:
    """Run a server. Without a relay of its own, it is the relay."""
    directory = folder / "server"
    EphemeralDevice("server").write(directory, max_controllers=100)
    settings.AMESH = {"DIR": str(directory)}
    lifecycle.reset()
    aside(lambda: staff("root", is_superuser=True))
    port = services.free_port()
    relay = relay or f"ws://{services.HOST}:{port}/ws"
    amesh = {"RELAY_URL": relay, "SCOPES": SCOPES, **json.loads(env.pop("AMESH", "{}"))}
    env = {
        **databases.environment(database),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "AUTH_MESH_DIR": str(directory),
        "TEST_AMESH": json.dumps(amesh),
        **env,
    }
    with services.serve(argv, env, port) as process:
        yield Served(Site(process.url, []), machine(folder, "Anna’s till", relay))
    lifecycle.reset()


@pytest.fixture
def database(sqlite_database: dict[str, str], django_db_blocker: Any) -> Iterator[dict[str, str]]:
    with django_db_blocker.unblock(), databases.as_default(sqlite_database):
        yield sqlite_database


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(80):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with the keyboard.")


def check_page(page: Page) -> None:
    """Check that nothing keeps people out of the page as it is now, on each screen, and that it breaks no strict CSP."""
    page.evaluate(axe.source())
    assert page.evaluate(axe.CHECK, list(axe.TAGS)) == []
    assert page.evaluate("() => window.forbidden") == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert not page.evaluate(TOO_WIDE), width


def begin(page: Page) -> str:
    """Begin a pairing with the keyboard, and return the one-time code."""
    page.goto(PAIR)
    tab_to(page, "input[name=scopes][value='orders:read']")
    page.keyboard.press("Space")
    tab_to(page, "#content-main button[type=submit]")
    page.keyboard.press("Enter")
    command = page.locator(".amesh-token code")
    expect(command).to_contain_text("amesh invite", timeout=20_000)
    (code,) = re.findall(r"amesh invite (\d{6})", command.inner_text())
    return str(code)


def pair(page: Page, laptop: Machine, *, is_wrong: bool = False) -> None:
    """Pair with the keyboard; if *is_wrong*, after a wrong code, and looking at each page."""
    code = begin(page)
    if is_wrong:
        check_page(page)
        with laptop.at("invite", code) as there:
            shown = verification_code(there)
            expect(page.locator("#amesh-code")).to_be_focused(timeout=10_000)
            page.keyboard.type(wrong(shown))
            page.keyboard.press("Enter")
            expect(page.get_by_text("try 2 of 3")).to_be_visible(timeout=10_000)
            there.expect("refused")
        command = page.locator(".amesh-token code")
        expect(command).to_contain_text("amesh invite", timeout=20_000)
        (code,) = re.findall(r"amesh invite (\d{6})", command.inner_text())
    with laptop.at("invite", code) as there:
        shown = verification_code(there)
        expect(page.locator("#amesh-code")).to_be_focused(timeout=10_000)
        expect(page.locator(".amesh-peer")).to_contain_text(laptop.id)
        expect(page.locator(".amesh-peer")).to_contain_text("Anna’s till")
        if is_wrong:
            check_page(page)
            expect(page.locator("#amesh-code")).to_be_focused()
        page.keyboard.type(shown)
        page.keyboard.press("Enter")
        there.expect("Does the other screen say “Verified”?")
        expect(page.get_by_role("heading", name="Verified")).to_be_visible(timeout=10_000)
        if is_wrong:
            check_page(page)
        there.type("y\n")
        assert there.end() == 0
    expect(page.get_by_role("heading", name="Paired")).to_be_visible(timeout=10_000)


def check(laptop: Machine) -> None:
    """Check that the device has what was chosen."""
    row = aside(lambda: Device.objects.get())
    assert (row.device_id, row.permissions) == (laptop.id, {"scopes": ["orders:read"]})


def watched(page: Page) -> list[str]:
    """Return a list that gets what goes wrong in a page."""
    wrongs: list[str] = []
    page.on("pageerror", lambda error: wrongs.append(str(error)))
    page.on("console", lambda line: line.type == "error" and wrongs.append(line.text))
    return wrongs


def test_with_the_keyboard_alone(database: dict[str, str], browser: Browser, tmp_path: Path, settings: Any) -> None:
    """runserver, and a thread of it. The page asks once a second."""
    (tmp_path / "relay").mkdir()
    with serving(tmp_path / "relay") as relay:
        argv = services.runserver("--insecure")
        with served(argv, database, tmp_path, settings, address(relay), TEST_CSP="1") as found:
            page = open_page(browser, found.site)
            page.add_init_script(f"({LISTEN})()")
            wrongs = watched(page)
            pair(page, found.laptop, is_wrong=True)
            expect(page.locator("#amesh-status")).to_have_text("The device is paired.")
            check_page(page)
            tab_to(page, "#amesh-pairing a.amesh-button")
            page.keyboard.press("Enter")
            expect(page.get_by_role("main")).to_contain_text(found.laptop.id)
            check(found.laptop)
            kinds = aside(lambda: list(AuditEvent.objects.order_by("id").values_list("kind", flat=True)))
            assert kinds == ["pairing_begun", "pairing_failed", "pairing_begun", "trust"]
            begin(page)
            tab_to(page, "form[action$='/cancel/'] button")
            page.keyboard.press("Enter")
            expect(page.get_by_text("The pairing was canceled.")).to_be_visible(timeout=10_000)
            check_page(page)
            without_javascript(browser, found)
            begin(page)
            page.context.clear_cookies()
            expect(page.get_by_role("link", name="Log in and continue")).to_be_visible(timeout=10_000)
            assert not wrongs


def without_javascript(browser: Browser, found: Served) -> None:
    """Pair without JavaScript: the page loads itself again until there is something to type."""
    context = browser.new_context(base_url=found.site.url, java_script_enabled=False, storage_state=found.site.session)
    page = context.new_page()
    page.goto(PAIR)
    page.locator("#content-main button[type=submit]").press("Enter")
    expect(page.locator(".amesh-token code")).to_contain_text("amesh invite", timeout=20_000)
    (code,) = re.findall(r"amesh invite (\d{6})", page.locator(".amesh-token code").inner_text())
    with found.laptop.at("invite", code) as there:
        shown = verification_code(there)
        page.locator("#amesh-code").wait_for(timeout=20_000)
        page.wait_for_load_state("load")
        page.locator("#amesh-code").fill(shown)
        page.get_by_role("button", name="Verify and trust").press("Enter")
        there.expect("Does the other screen say “Verified”?")
        there.type("y\n")
        assert there.end() == 0
    expect(page.get_by_role("heading", name="Paired")).to_be_visible(timeout=20_000)
    context.close()


def test_over_a_websocket(database: dict[str, str], browser: Browser, tmp_path: Path, settings: Any) -> None:
    """daphne, which is the relay as well. The page is told when to ask."""
    with served(services.daphne("tests.admin.live_asgi:application"), database, tmp_path, settings) as found:
        page = open_page(browser, found.site)
        page.add_init_script(f"({WATCH})()")
        wrongs = watched(page)
        code = begin(page)
        with found.laptop.at("invite", code) as there:
            shown = verification_code(there)
            expect(page.locator("#amesh-code")).to_be_focused(
                timeout=4_000
            )  # by itself, the page would ask after 5 seconds
            assert page.evaluate("window.told").count("changed") >= 1
            page.keyboard.type(shown)
            page.keyboard.press("Enter")
            there.expect("Does the other screen say “Verified”?")
            there.type("y\n")
            assert there.end() == 0
        expect(page.get_by_role("heading", name="Paired")).to_be_visible(timeout=10_000)
        check(found.laptop)
        assert not wrongs


@pytest.mark.unversioned  # Celery and the broker are the same on both pairs
def test_in_a_worker_of_celery(
    database: dict[str, str], browser: Browser, tmp_path: Path, settings: Any, redis: services.Redis
) -> None:
    """runserver and a worker. The broker gets a number, and no code."""
    (tmp_path / "relay").mkdir()
    more = {"AMESH": json.dumps({"PAIRING_TASK": True}), "TEST_BROKER_URL": redis.url}
    with serving(tmp_path / "relay") as relay, ExitStack() as stack:
        runserver = services.runserver("--insecure")
        found = stack.enter_context(served(runserver, database, tmp_path, settings, address(relay), **more))
        page = open_page(browser, found.site)
        argv = ("celery", "-A", "tests.celery_app", "worker", "-Q", "amesh", "-P", "threads", "-c", "2", "-l", "INFO")
        worker = [sys.executable, "-m", *argv, "--without-gossip", "--without-mingle"]
        env = {
            **databases.environment(database),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "AUTH_MESH_DIR": str(tmp_path / "server"),
            "TEST_AMESH": json.dumps({"PAIRING_TASK": True}),
            "TEST_BROKER_URL": redis.url,
        }
        process = stack.enter_context(Program(worker, env, tmp_path / "worker.log"))
        services.until(lambda: "ready." in process.output())
        pair(page, found.laptop)
        check(found.laptop)
        begin(page)
        process.send(signal.SIGKILL)
        long_ago = now() - dt.timedelta(seconds=sessions.LOST_SECONDS)
        aside(lambda: PairingSession.objects.update(alive_at=long_ago))
        expect(page.get_by_text("was restarted")).to_be_visible(timeout=10_000)
