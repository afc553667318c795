"""A server asks its hubs, with threads and transactions as in production: a revoked device does not get in beside the question."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import posting, rarely
from amesh_django.test import EphemeralDevice
from authmesh.device import LocalDevice
from tests.fleet.hubs import TestHub, status
from tests.fleet.test_freshness import Clock, Line, begin_anew

pytestmark = pytest.mark.slow


@pytest.fixture
def lines(default_database: Any, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Line]]:
    """The lines to two hubs that the server has heard."""
    found = [Line(TestHub(amesh_server.identity.device_id).trusted("revoke")) for _ in range(2)]
    for number, line in enumerate(found):
        line.hub.url = f"https://hub-{number}.example/amesh/"
        line.hub.greet()

    def post(url: str, body: bytes, **options: Any) -> posting.Answer:
        return next(line for line in found if url.startswith(line.hub.url)).post(url, body, **options)

    monkeypatch.setattr(posting, "post", post)
    rarely.reset()
    yield found
    for thread in threading.enumerate():  # an answer that arrives late is applied
        if thread.name == "amesh-pull":
            thread.join(30)


@pytest.fixture
def clock(lines: list[Line], monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lost(lines: list[Line]) -> EphemeralDevice:
    """A device that the second hub has revoked. Nobody has told the server."""
    device = EphemeralDevice("lost")
    DatabaseAllowList(by="person").add(device.entry())
    lines[1].events = [lines[1].hub.event("revoke", device)]
    return device


def test_a_hub_that_hangs_does_not_hold_back_the_others(lines: list[Line], clock: Clock, lost: EphemeralDevice) -> None:
    ended = threading.Event()
    lines[0].rewrite = lambda body, signature: (body, signature) if ended.wait(30) else (b"", "")
    begin_anew(clock)
    try:
        assert status(lost) == 401
    finally:
        ended.set()
