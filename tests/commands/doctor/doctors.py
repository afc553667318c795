"""Helpers for the tests of doctor and of `init --force`: both front ends as processes, and servers with given answers."""

from __future__ import annotations

import email.utils
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from amesh_django.test.devices import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice
from tests.support import cheap_keys, databases, fork_server
from tests.support.front_ends import id_of, line_of
from tests.support.services import ROOT

SECRETS = ("open sesame and more",)


class FrontEnd:
    """One of the two front ends, with a device directory, and a database for `manage.py`."""

    def __init__(self, folder: Path, database: dict[str, str] | None = None) -> None:
        self.django = database is not None
        self.path = folder / "amesh"
        self.env = {
            **os.environ,
            "AUTH_MESH_DIR": str(self.path),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]),
            **(databases.environment(database) if database is not None else {}),
        }

    def argv(self, name: str, *words: str | Path) -> list[str]:
        return cheap_keys.argv(self.django, name, *words)

    def run(self, name: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        done = fork_server.run(self.argv(name, *words), env={**self.env, **env})
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def done(self, name: str, *words: str | Path, **env: str) -> str:
        finished = self.run(name, *words, **env)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def make(self, name: str = "server", **options: Any) -> EphemeralDevice:
        """Create an identity, without the cost of a strong passphrase."""
        device = EphemeralDevice(name)
        device.write(self.path, **options)
        return device

    def trust(self, device: EphemeralDevice, role: str) -> str:
        self.done("trust", line_of(device), "--role", role, "--yes")
        return id_of(device)

    def doctor(self, *words: str | Path, **env: str) -> Examined:
        """Run `doctor --json`, without a relay unless one is named."""
        relay = [] if "--relay" in words or "AMESH_RELAY_URL" in env else ["--no-relay"]
        done = self.run("doctor", "--json", *relay, *words, **env)
        return Examined(done.returncode, json.loads(done.stdout), done.stderr)


@dataclass
class Examined:
    """The findings of doctor."""

    code: int
    document: dict[str, Any]
    err: str

    def all(self, id: str) -> list[dict[str, str]]:
        return [found for found in self.document["checks"] if found["id"] == id]

    def status(self, id: str) -> str:
        """Return the worst status of a check."""
        found = [one["status"] for one in self.all(id)]
        return next((status for status in ("problem", "warning", "skipped", "ok") if status in found), "missing")

    def text(self, id: str) -> str:
        return " ".join(f"{found['message']} {found['advice']}" for found in self.all(id))

    def problems(self) -> set[str]:
        return {found["id"] for found in self.document["checks"] if found["status"] == "problem"}


@dataclass
class Told:
    """The answers of a server that is not ours."""

    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    #: By how many seconds its clock is ahead; None sends no Date.
    ahead: float | None = 0
    headers: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    #: While it is cleared, nobody gets an answer.
    go_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.go_on.set()

    def knows(self, device: EphemeralDevice, **more: Any) -> None:
        """Answer like a check address that knows *device*."""
        members = {"deviceId": id_of(device), "friendlyName": "desk", "role": "controller", "permissions": {}, **more}
        self.status, self.body = 200, json.dumps(members).encode()

    def refuses(self, status: int, code: str) -> None:
        self.status, self.body = status, json.dumps({"error": code}).encode()


class _Server(ThreadingHTTPServer):
    told: Told
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client that does not trust our certificate closes the connection, which is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing on stderr."""

    def do_GET(self) -> None:
        told = self.server.told
        told.paths.append(self.path)
        told.authorization.append(self.headers.get("Authorization"))
        told.go_on.wait()
        with suppress(ConnectionError):
            self.send_response_only(told.status)
            if told.ahead is not None:
                self.send_header("Date", email.utils.formatdate(time.time() + told.ahead, usegmt=True))
            for name, value in {"Content-Length": str(len(told.body)), **told.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told.body)


@contextmanager
def told(certificate: Path | None = None) -> Iterator[Told]:
    """Run a server on a free port; with TLS if a file with a certificate and its key is given."""
    state = Told()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.told = state
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        state.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.go_on.set()
            server.shutdown()
            thread.join()


def allow(path: Path, device: EphemeralDevice, role: Any) -> str:
    """Trust a device in the file of a device directory."""
    FileAllowList(LocalDevice(path)).add(device.entry(role))
    return id_of(device)
