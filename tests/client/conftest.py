"""Fixtures of the clients: two servers that record the requests that they receive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.recording import Recorder, recording


@pytest.fixture(scope="module")
def _server() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def _other() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def server(_server: Recorder) -> Recorder:
    _server.seen.clear()
    _server.redirects.clear()
    return _server


@pytest.fixture
def other(_other: Recorder) -> Recorder:
    _other.seen.clear()
    _other.redirects.clear()
    return _other
