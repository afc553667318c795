"""A server that counts requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.models import RequestCount
from amesh_django.test import EphemeralDevice
from amesh_django.usage import counting
from authmesh.device import LocalDevice


@pytest.fixture
def database(sqlite_database: dict[str, str]) -> dict[str, str]:
    """SQLite, but for the tests of the writing."""
    return sqlite_database


@pytest.fixture
def counted(default_database: dict[str, str], amesh_server: LocalDevice, settings: Any) -> Iterator[None]:
    """The server counts requests and notes when devices were seen. What it counts is written after each request."""
    settings.AMESH = {**settings.AMESH, "COUNT_REQUESTS": True, "LAST_SEEN_SECONDS": 60}
    settings.ROOT_URLCONF = "tests.usage.views"
    yield
    lifecycle.reset()


@pytest.fixture
def laptop(counted: None) -> EphemeralDevice:
    """A controller of the server with one scope."""
    device = EphemeralDevice("laptop")
    DatabaseAllowList(by="alice").add(device.entry())
    DatabaseAllowList(by="alice").grant([device.identity.device_id], Grant(scopes=["orders:read"]))
    return device


@pytest.fixture
def rows(counted: None) -> Callable[[], dict[tuple[str, str, str, str], int]]:
    """A function that writes what was counted, and returns all rows: period, device ID, route, and reason → times."""

    def read() -> dict[tuple[str, str, str, str], int]:
        counting._counts.flush()
        found = list(RequestCount.objects.all())
        keys = [(row.period, row.device_id, row.route, row.reason) for row in found]
        assert len(set(keys)) == len(keys), "the hour has changed during the test"
        return dict(zip(keys, (row.times for row in found), strict=True))

    return read
