"""Helpers of the wire tests: devices that sign, requests as bytes on a socket, and the servers that answer them."""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings

from authmesh.device import init_device
from authmesh.protocol import CONTROLLER, TARGET, DeviceEntry, generate_private_key, sign
from authmesh.protocol.canonical import canonical_string_of_hash
from authmesh.protocol.encoding import b64encode, b64url_encode
from authmesh.protocol.keys import device_id, load_private_key, public_key_bytes
from tests.support import databases, services

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

#: The body limit of the servers that all tests share.
LIMIT = 1 << 20
#: The three ways to protect a view ("doors"), the first two also with async views.
DOORS = ("/middleware/sync", "/middleware/async", "/decorator/sync", "/decorator/async", "/drf")

PASSWORD = "correct horse battery staple"

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Caller:
    """A key pair that creates Authorization headers, valid and invalid ones."""

    name: str
    private_key: bytes = field(default_factory=generate_private_key, repr=False)

    @property
    def public_key(self) -> bytes:
        return public_key_bytes(load_private_key(self.private_key))

    @property
    def device_id(self) -> str:
        return device_id(self.public_key)

    def header(
        self,
        method: str,
        target: str,
        body: bytes | str = b"",
        *,
        ts: int | str | None = None,
        nonce: str | None = None,
        shown: Mapping[str, str] | None = None,
    ) -> str:
        """Return the header for a request. `body` may be its SHA-256 in hex. `shown` replaces members after signing."""
        ts = str(int(time.time()) if ts is None else ts)
        nonce = nonce or b64url_encode(os.urandom(16))
        body_hash = sha256(body) if isinstance(body, bytes) else body
        canonical = canonical_string_of_hash(method, target, ts, nonce, body_hash)
        signature = sign(self.private_key, canonical.encode())
        members = {
            "v": "1",
            "id": b64encode(self.public_key),
            "ts": ts,
            "nonce": nonce,
            "sig": b64url_encode(signature),
        }
        return "AuthMesh " + ",".join(f'{name}="{value}"' for name, value in {**members, **(shown or {})}.items())


@dataclass(frozen=True)
class Answer:
    """An answer; its status is 0 if the server closed the connection without one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The code in an error body, which must have no other member."""
        found = self.json
        assert [*found] == ["error"], found
        return str(found["error"])


def exchange(port: int, parts: Iterable[bytes], *, end: bool = False, seconds: float = 60) -> Answer:
    """Send bytes and read one answer. With `end`, close our half of the connection after the last byte."""
    with socket.create_connection((services.HOST, port), timeout=seconds) as connection:
        # A server that rejects the request early may close the connection while we still send.
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            body = response.read()
        except (http.client.BadStatusLine, ConnectionError):
            return Answer(0)
        finally:
            response.close()
        return Answer(response.status, dict(response.headers.items()), body)


def head(method: str, target: str, headers: Headers = (), *, host: str = "127.0.0.1") -> bytes:
    """Return the head of a request in UTF-8. Nothing is checked or quoted."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in pairs]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def send(
    server: services.Server,
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes = b"",
    *,
    chunked: bool = False,
) -> Answer:
    """Send one request. It is signed only if `headers` contain a signature."""
    pairs = [*(headers.items() if isinstance(headers, Mapping) else headers)]
    if chunked:
        pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
        wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        return exchange(server.port, [head(method, target, [*pairs, ("Transfer-Encoding", "chunked")]), wire])
    if body or method in ("POST", "PUT"):
        pairs.append(("Content-Length", str(len(body))))
    return exchange(server.port, [head(method, target, pairs), body])


def signed(
    server: services.Server,
    signer: Caller,
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes = b"",
    *,
    chunked: bool = False,
) -> Answer:
    """Send one request, signed by `signer`."""
    pairs = [*(headers.items() if isinstance(headers, Mapping) else headers)]
    pairs.append(("Authorization", signer.header(method, target, body)))
    return send(server, method, target, pairs, body, chunked=chunked)


def multipart(fields: Mapping[str, str], files: Mapping[str, tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return content type and body of a form with files."""
    mark = "----amesh-boundary-7MA4YWxkTrZu0gW"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts += [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, (filename, content) in files.items()
    ]
    return f"multipart/form-data; boundary={mark}", b"".join(parts) + f"--{mark}--\r\n".encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


#: For tests of what is the same in all servers: one that serves WSGI and one that serves ASGI are enough on the second pair of versions.
ONE_OF_EACH_KIND = (
    "gunicorn",
    "uvicorn",
    *(pytest.param(kind, marks=pytest.mark.unversioned) for kind in ("daphne", "runserver")),
)


class World:
    """A database with a sealed list, the directory of the server that sealed it, and devices of every kind.

    `laptop` and `phone` are controllers, `target` is a target, `lost` was revoked, `stranger` is unknown.
    """

    def __init__(self, database: Mapping[str, str], folder: Path, blocker: DjangoDbBlocker) -> None:
        self.database = database
        self.directory = folder / "server"
        self._blocker = blocker
        init_device(self.directory, "server", now=dt.datetime.now(dt.UTC), max_controllers=10)
        self.laptop, self.phone, self.target, self.lost, self.stranger = map(
            Caller, ("laptop", "Käthes 📱", "target", "lost", "stranger")
        )
        with self.allow_list() as devices:
            from django.contrib.auth import get_user_model

            for signer in (self.laptop, self.phone, self.lost):
                devices.add(self.entry(signer))
            devices.add(self.entry(self.target, TARGET))
            devices.revoke(self.lost.device_id, reason="left on a train")
            get_user_model()._default_manager.create_user("anna", password=PASSWORD)  # type: ignore[attr-defined]
        self.basic = "Basic " + b64encode(f"anna:{PASSWORD}".encode())

    @staticmethod
    def entry(signer: Caller, role: Any = CONTROLLER) -> DeviceEntry:
        return DeviceEntry.new(signer.public_key, signer.name, role, added_at=dt.datetime.now(dt.UTC))

    @contextmanager
    def allow_list(self) -> Iterator[Any]:
        """Return the list of the database, for changes in this process while the servers run."""
        from amesh_django.allow_list import DatabaseAllowList  # only now: Django must be set up

        with (
            self._blocker.unblock(),
            override_settings(AMESH={"DIR": str(self.directory)}),
            databases.as_default(self.database),
        ):
            yield DatabaseAllowList(by="the tests")

    def sql(self, statement: str, *parameters: object) -> None:
        """Change the database outside Django. `%s` stands for a parameter."""
        if "sqlite" in self.database["ENGINE"]:
            connection = sqlite3.connect(self.database["NAME"], timeout=20)
            with closing(connection), connection:
                connection.execute(statement.replace("%s", "?"), parameters)
            return
        import psycopg

        place = {"host": self.database["HOST"], "port": self.database["PORT"], "user": self.database["USER"]}
        with psycopg.connect(**place, dbname=self.database["NAME"], autocommit=True) as remote:
            remote.execute(statement.encode(), parameters)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a server of this world."""
        return {
            "DJANGO_SETTINGS_MODULE": "tests.verification.wire_settings",
            "TEST_AMESH_DIR": str(self.directory),
            **databases.environment(self.database),
            **more,
        }

    @contextmanager
    def serve(self, kind: str, *options: str, **more: str) -> Iterator[services.Server]:
        """Start a server of this world; stop it after the block."""
        argv = [*services.SERVERS[kind](), *options]
        with services.serve(argv, self.environment(**more)) as server:
            yield server


class Wire(World):
    """The world and the servers that all tests of a process share. A server starts when it is first needed."""

    def __init__(
        self, database: Mapping[str, str], folder: Path, blocker: DjangoDbBlocker, redis: services.Redis
    ) -> None:
        super().__init__(database, folder, blocker)
        self._redis = redis
        self._servers: dict[str, services.Server] = {}
        self._stack = ExitStack()

    def server(self, kind: str) -> services.Server:
        if kind not in self._servers:
            options = ("-w", "2") if kind == "gunicorn" else ()
            more = {"TEST_REDIS_URL": self._redis.url, "TEST_AMESH_MAX_BODY": str(LIMIT)}
            self._servers[kind] = self._stack.enter_context(self.serve(kind, *options, **more))
        return self._servers[kind]

    def close(self) -> None:
        self._stack.close()


@contextmanager
def said(server: services.Server) -> Iterator[list[str]]:
    """Yield a list. After the block, it has the lines that the server printed during the block."""
    start, lines = len(server.output()), list[str]()
    yield lines
    lines.extend(server.output()[start:].splitlines())


def resident_memory(server: services.Server, what: str) -> int:
    """Return `VmRSS` (current) or `VmHWM` (peak) of a server and its workers, in bytes."""
    return sum(_memory(pid, what) for pid in _processes(server))


def forget_peak(server: services.Server) -> None:
    """Reset `VmHWM` (proc(5), clear_refs)."""
    for pid in _processes(server):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _processes(server: services.Server) -> list[int]:
    assert server.process is not None
    return [server.process.pid, *_children(server.process.pid)]


def _children(pid: int) -> list[int]:
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for child in found for below in _children(child))]


def _memory(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@pytest.fixture(scope="session")
def wire(
    _sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    django_db_blocker: DjangoDbBlocker,
    redis_server: services.Redis,
) -> Iterator[Wire]:
    """The world that all wire tests share. They must not change it."""
    folder = tmp_path_factory.mktemp("wire")
    shared = Wire(databases.sqlite_copy(_sqlite_template, folder), folder, django_db_blocker, redis_server)
    yield shared
    shared.close()


@pytest.fixture(params=services.SERVERS)
def wire_server(request: pytest.FixtureRequest, wire: Wire) -> services.Server:
    """Each server of the shared world in turn."""
    return wire.server(request.param)


@pytest.fixture
def world(sqlite_database: dict[str, str], tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> World:
    """A world for one test."""
    return World(sqlite_database, tmp_path, django_db_blocker)
