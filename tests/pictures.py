"""``make pictures``: take the pictures of the documents, in Chromium, of the fleet that ``make demo KEEP=1`` leaves running."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

from tests.support.services import ROOT, chromium_path

PICTURES = ROOT / "docs" / "pictures"
#: Seconds until the demo has come to its end, and for which the fleet lives before the pictures are taken.
_DEMO_SECONDS, _LIVING_SECONDS = 600.0, 60.0
_WIDTH, _HEIGHT = 1280, 860


@contextmanager
def kept_demo() -> Iterator[tuple[str, str]]:
    """Run the demo, and yield the address of its admin and the password of its user."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "amesh_demo", "--keep"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found: dict[str, str] = {}
        end = time.monotonic() + _DEMO_SECONDS
        while "password" not in found:
            line = process.stdout.readline()
            if not line or time.monotonic() > end:
                raise RuntimeError("The demo ended early. Run make demo to see why.")
            found |= dict(re.findall(r"^  (admin|password) +(\S+)$", line, re.MULTILINE))
        yield found["admin"], found["password"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def take(page: Page, name: str, *, whole: bool = False) -> None:
    """Take a picture of the page that is shown, and say so."""
    page.wait_for_load_state("networkidle")
    page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)
    print(f"docs/pictures/{name}.png")


def main() -> None:
    """Take all pictures."""
    PICTURES.mkdir(exist_ok=True)
    with kept_demo() as (start, password), sync_playwright() as playwright:
        time.sleep(_LIVING_SECONDS)
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        page.goto(start)
        page.get_by_label("Username").fill("demo")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(start)
        take(page, "start", whole=True)
        page.goto(f"{start}device/?q=till-berlin-01")
        page.get_by_role("link", name="till-berlin-01").click()
        take(page, "device", whole=True)
        page.goto(f"{start}auditevent/")
        take(page, "log")
        page.goto(f"{start}server/")
        take(page, "servers")
        page.goto(f"{start}device/approvals/")
        take(page, "approvals")
        page.goto(f"{start}pairingsession/")
        page.locator("#content form [type=submit]").last.click()
        page.locator("#content svg").wait_for()
        take(page, "pair")
        browser.close()


if __name__ == "__main__":
    main()
