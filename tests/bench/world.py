"""What the bench runs on: real servers, databases of several sizes, keys, and workers that measure in processes of their own."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from authmesh.device import init_device
from tests.bench.signing import make_signers
from tests.support import databases
from tests.support.services import ROOT, Postgres, Redis, run, running_postgres, running_redis

SETTINGS = "tests.bench.settings"
BACKENDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        sizes: devices in the list, smallest first; the last is compared with the first.
        strangers: devices that sign once each.
        rounds: of the verifier; the other sections take their share.
        batch: requests in a round of the verifier.
        changes: rounds of change and first request.
        starts: cold starts.
        served: requests in a round under gunicorn.
        servings: rounds under gunicorn, for each number of workers.
        sent: requests of the client in a round.
        revoked: devices that a hub revokes at three servers; a fifth of them, but at least two, at fifty.
    """

    sizes: tuple[int, ...]
    strangers: int
    rounds: int
    batch: int
    changes: int
    starts: int
    served: int
    servings: int
    sent: int
    revoked: int


SCALES = {
    "full": Scale((10, 1_000, 100_000), 1_000, 40, 200, 100, 5, 200, 50, 200, 200),
    "quick": Scale((10, 1_000), 100, 6, 100, 20, 2, 100, 6, 100, 20),
    "smoke": Scale((10, 50), 10, 2, 20, 2, 1, 20, 1, 10, 2),
}


class Worker:
    """A process with Django on one database. :meth:`call` runs a function of `tests.bench.measures` in it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, name: str, **arguments: Any) -> Any:
        """What the function returns.

        Raises:
            RuntimeError: it raised, or the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"call": name, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "The worker has ended; what it said stands above."}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class World:
    """The servers, and the databases filled with trusted devices."""

    scale: Scale
    folder: Path
    redis: Redis
    postgres: Postgres
    stack: ExitStack
    _lists: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    _workers: dict[tuple[str, int, str], Worker] = field(default_factory=dict)

    @property
    def signers(self) -> Path:
        """Private keys of devices that every list trusts, as far as it is long enough."""
        return self.folder / "signers"

    def environment(self, backend: str, size: int) -> dict[str, str]:
        """For a process on the list of that size."""
        return {
            **databases.environment(self._lists[backend, size]),
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "AUTH_MESH_DIR": str(self.directory(backend, size)),
            "BENCH_SIGNERS": str(self.signers),
            "BENCH_JWT_KEY": str(self.folder / "jwt.pem"),
            "TEST_REDIS_URL": self.redis.url,
        }

    def directory(self, backend: str, size: int) -> Path:
        """The server that has that list; one of its own for each, as a host knows one list."""
        return self.folder / f"server-{backend}-{size}"

    def worker(self, backend: str, size: int, name: str = "reader") -> Worker:
        """The worker of that name on the list of that size; started where there is none yet."""
        key = (backend, size, name)
        if key not in self._workers:
            self._workers[key] = self.stack.enter_context(self.fresh_worker(backend, size))
        return self._workers[key]

    def fresh_worker(self, backend: str, size: int) -> Worker:
        """One that has done nothing yet, and is the caller's to close."""
        return Worker(self.environment(backend, size))

    def _make_database(self, backend: str, size: int) -> None:
        name = f"bench_{size}"
        if backend == "postgresql":
            self.postgres.execute(f"CREATE DATABASE {name}")
            entry = self.postgres.django(name)
        else:
            entry = databases.sqlite(self.folder / f"{name}.sqlite3")
        self._lists[backend, size] = entry
        init_device(self.directory(backend, size), "bench", now=dt.datetime.now(dt.UTC), backend="encrypted-file")
        run([sys.executable, "-m", "django", "migrate", "--verbosity=0"], env=self.environment(backend, size))
        with self.fresh_worker(backend, size) as worker:
            worker.call("fill", count=size)

    def make_databases(self) -> None:
        """Make and fill all, both backends at a time."""
        for size in self.scale.sizes:
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda backend, size=size: self._make_database(backend, size), BACKENDS))


def _make_jwt_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@contextmanager
def running_world(scale: Scale) -> Iterator[World]:
    """All of it, gone at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amesh-bench-")))
        redis = stack.enter_context(running_redis())
        postgres = stack.enter_context(running_postgres())
        make_signers(folder / "signers", scale.strangers)
        _make_jwt_key(folder / "jwt.pem")
        world = World(scale, folder, redis, postgres, stack)
        world.make_databases()
        yield world
