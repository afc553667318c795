"""Servers that run, each with an identity and a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.test import override_settings

from amesh_django import lifecycle
from amesh_django.enrollment import tokens
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import LocalDevice
from tests.support.databases import as_default, environment, sqlite_copy
from tests.support.services import Server, gunicorn, serve


@dataclass
class Site:
    """A server that runs."""

    server: Server
    device: LocalDevice
    database: dict[str, str]

    @property
    def url(self) -> str:
        return f"{self.server.url}/amesh/"

    @property
    def device_id(self) -> str:
        return self.device.identity.device_id

    @contextmanager
    def here(self) -> Iterator[None]:
        """Be this server inside the block: its settings and its database."""
        with as_default(self.database), override_settings(AMESH={**settings.AMESH, "DIR": str(self.device.path)}):
            lifecycle.reset()
            yield
        lifecycle.reset()

    def token(self, **options: Any) -> str:
        """Make an enrollment token."""
        given = {"url": self.url, "name": "m", "uses": 1, "lifetime": 3600, "by": "test", **options}
        with self.here():
            return tokens.make(**given).text


@contextmanager
def site(name: str, folder: Path, template: Path, **env: str) -> Iterator[Site]:
    """Run a server."""
    folder.mkdir()
    device = EphemeralDevice(name).write(folder / "server", max_controllers=100)
    database = sqlite_copy(template, folder)
    words = gunicorn("tests.enrollment.sites_wsgi:application", 1, "--threads", "4")
    with serve(words, {**environment(database), "AUTH_MESH_DIR": str(device.path), **env}) as server:
        yield Site(server, device, database)
