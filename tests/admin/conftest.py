"""Fixtures of the tests of the admin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from playwright.sync_api import Browser, sync_playwright

from amesh_django.models import Device
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import Trust, logged_in, staff


@pytest.fixture
def trust(db: None, amesh_trust: Callable[..., EphemeralDevice]) -> Trust:
    """A function: ``trust(name, **options)`` creates a trusted device and returns its row."""

    def make(name: str = "laptop", **options: Any) -> Device:
        made = amesh_trust(EphemeralDevice(name), **options)
        return Device.objects.get(device_id=made.identity.device_id)

    return make


@pytest.fixture
def root(db: None, amesh_server: object) -> Client:
    """A superuser."""
    return logged_in(staff("root", is_superuser=True))


@pytest.fixture
def browser(chromium: Path) -> Iterator[Browser]:
    """Chromium, for one test: its event loop must not outlive it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
