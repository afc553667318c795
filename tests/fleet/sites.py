"""A hub and its servers for the tests: each a folder, a database, a device, and processes of its own, as in production."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from amesh_django.test.devices import EphemeralDevice
from authmesh.client.httpx_auth import AmeshAuth
from tests.support import databases, fork_server, services

#: Printed before the JSON value of :meth:`Site.python`, so that warnings do not get in its way.
_MARK = "--- value ---"


class Site:
    """One Django installation: a hub, a server, or both.

    Args:
        name: its friendly name.
        folder: where its device directory lies.
        database: its entry of DATABASES, migrated.
        broker: address of the broker of Celery; None for a site without Celery.
        amesh: more of ``AMESH``.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        database: Mapping[str, str],
        *,
        broker: str | None = None,
        amesh: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = EphemeralDevice(name)
        self.directory = folder / name
        self.device.write(self.directory, max_controllers=100_000)
        self._scripts = folder / f"{name}-scripts"
        self._scripts.mkdir(parents=True)
        self.port = services.free_port()
        self.url = f"http://{services.HOST}:{self.port}/amesh/"
        self.env = {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "AUTH_MESH_DIR": str(self.directory),
            "TEST_AMESH": json.dumps({"URL": self.url, **(amesh or {})}),
            **databases.environment(database),
        }
        if broker is not None:
            self.env["TEST_BROKER_URL"] = broker

    @property
    def device_id(self) -> str:
        return self.device.identity.device_id

    @contextmanager
    def serving(self, workers: int = 1, **env: str) -> Iterator[services.Server]:
        """Serve it with gunicorn."""
        with services.serve(services.gunicorn("tests.wsgi:application", workers), {**self.env, **env}, self.port) as it:
            yield it

    def manage(self, *words: str, **env: str) -> str:
        """Run a command of ``manage.py`` and return what it prints."""
        return services.run([sys.executable, "-m", "django", *words], env={**self.env, **env})

    def python(self, code: str, **env: str) -> Any:
        """Run code with the allow list as ``trusted`` in a process of this site, and return the JSON value of ``result``."""
        script = (
            "import json, django; django.setup()\n"
            "from amesh_django.allow_list import DatabaseAllowList\n"
            "from amesh_django.models import *\n"
            "trusted, result = DatabaseAllowList(by='operator'), None\n"
            f"{code}\nprint({_MARK!r}); print(json.dumps(result))"
        )
        path = self._scripts / f"{uuid.uuid4()}.py"  # a file, so that the fork server can run it
        path.write_text(script)
        return json.loads(services.run([sys.executable, str(path)], env={**self.env, **env}).rpartition(_MARK)[2])

    def trust(self, device: EphemeralDevice, role: str = "controller", **permissions: bool) -> None:
        """Trust a device, as pairing does."""
        self.python(trusting(device, role, **permissions))

    def answer(self, device: EphemeralDevice, path: str = "check") -> httpx.Response:
        """Return the answer to a signed request of a device."""
        return httpx.get(f"{self.url}{path}", auth=AmeshAuth(device), timeout=10)

    def accepts(self, device: EphemeralDevice) -> bool:
        """Return True if a signed request of a device is accepted."""
        status = self.answer(device).status_code
        assert status in (200, 401), status
        return status == 200

    def program(self, *argv: str) -> Program:
        """Return a program of this site that is not started yet, such as a worker."""
        return Program([sys.executable, "-m", *argv], self.env, self.directory / f"{argv[0].rpartition('.')[2]}.log")

    def worker(self, concurrency: int = 4, name: str = "celery") -> Program:
        """Return a Celery worker for the queue of amesh, as the documentation says."""
        argv = ("celery", "-A", "tests.celery_app", "worker", "-Q", "amesh", "-P", "threads", "-c", str(concurrency))
        options = ("--prefetch-multiplier", "1", "--without-gossip", "--without-mingle", "-l", "INFO")
        return self.program(*argv, *options, "-n", f"{name}@%h")

    def beat(self) -> Program:
        """Return the beat of Celery, which rings the sweeper."""
        return self.program(
            "celery", "-A", "tests.celery_app", "beat", "-s", str(self.directory / "beat"), "-l", "INFO"
        )


def trusting(device: EphemeralDevice, role: str = "controller", **permissions: bool) -> str:
    """Return code for :meth:`Site.python` that trusts a device, as pairing does."""
    return (
        "from authmesh.protocol.allow_list import DeviceEntry\nfrom authmesh.protocol.keys import device_id\n"
        f"key = bytes.fromhex({device.identity.public_key.hex()!r})\n"
        f"trusted.add(DeviceEntry(device_id(key), key, {device.identity.friendly_name!r}, "
        f"'2026-01-01T00:00:00.000Z', 'handshake', {role!r}, {permissions!r}))\n"
    )


class Program:
    """A program without a port, in a process group of its own."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self._argv = argv
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self._log = log
        self._process: fork_server.Process | None = None

    def __enter__(self) -> Program:
        with self._log.open("ab") as log:
            file = log.fileno()
            self._process = fork_server.start(self._argv, env=self._env, stdout=file, stderr=file)
        return self

    def __exit__(self, *error: object) -> None:
        if self.runs:
            self.send(signal.SIGTERM)
            try:
                self._running.wait(services.STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL)
        self._running.wait()
        self._process = None

    @property
    def _running(self) -> fork_server.Process:
        assert self._process is not None, "the program was not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._running.pid

    @property
    def runs(self) -> bool:
        """True if the program has not ended."""
        return self._running.poll() is None

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the program and all that it has started."""
        os.killpg(self._running.pid, sig)

    def output(self) -> str:
        """Return all that the program has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def introduce(hub: Site, server: Site, *permissions: str) -> None:
    """Pair a hub with a server, as ``amesh_invite`` at the hub and ``amesh_grant`` at the server do.

    Args:
        hub: becomes a controller of *server*.
        server: becomes a target of *hub*.
        permissions: those of the hub at the server, ``revoke`` if none is named.
    """
    hub.trust(server.device, "target")
    server.trust(hub.device, **dict.fromkeys(permissions or ("revoke",), True))
