"""Fixtures of the fleet: the other end of a delivery, a clock, and a log that has said nothing yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amesh_django.fleet import rarely
from tests.fleet.peers import Clock, Peer, peer


@pytest.fixture(autouse=True)
def _said() -> None:
    rarely.reset()


@pytest.fixture
def other() -> Iterator[Peer]:
    """A server that knows the protocol, and can break it in every way."""
    with peer() as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()
