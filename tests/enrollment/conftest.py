"""A server with several processes and threads, and a database that each of them has a connection of its own to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from authmesh.client import enrolling, forget_devices
from authmesh.device import LocalDevice
from tests.support.databases import environment
from tests.support.services import Server, gunicorn, serve


@pytest.fixture
def running(default_database: dict[str, str], amesh_server: LocalDevice) -> Iterator[Server]:
    """gunicorn with SQLite and with PostgreSQL. Its database is that of this process, too.

    pytest-django's ``live_server`` shares one connection between its threads, so that a thread sees half of the transaction of another one.
    """
    env = {**environment(default_database), "AUTH_MESH_DIR": str(amesh_server.path)}
    with serve(gunicorn("tests.wsgi:application", 2, "--threads", "10"), env) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The device directory of a machine, which has no identity."""
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "machine"))
    monkeypatch.delenv(enrolling.ENROLL_VARIABLE, raising=False)
    forget_devices()
    enrolling.reset()
    yield tmp_path / "machine"
    forget_devices()
    enrolling.reset()
