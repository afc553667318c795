"""Real servers for the tests: each on a free loopback port, in a folder of its own, gone at the end."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import fork_server

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0

# Below the range that the kernel hands to outgoing connections, so that none of those takes a port between
# the moment it was found free and the moment the server binds it.
_PORTS = range(20_000, 32_000)
_handed_out: set[int] = set()
_random = random.Random()


def free_port() -> int:
    """A loopback port that nothing listens on, and that this process has not handed out before."""
    for port in _random.sample(_PORTS, len(_PORTS)):
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise RuntimeError(f"No free port from {_PORTS.start} to {_PORTS.stop}: end the servers that hold them.")


def until(found: Callable[[], object], seconds: float = 30) -> float:
    """Wait until something is true, and return the seconds that it took."""
    started = time.monotonic()
    while not found():
        assert time.monotonic() - started < seconds, "It did not happen in time."
        time.sleep(0.02)
    return time.monotonic() - started


def program(*names: str, package: str, folders: Sequence[Path] = ()) -> Path:
    """The first of `names` that is in `folders` or on PATH; without one the test is skipped, saying what to install."""
    for name in names:
        candidates = [str(folder / name) for folder in folders if (folder / name).exists()]
        if path := next(iter(candidates), None) or shutil.which(name):
            return Path(path)
    pytest.skip(f"{names[0]} is missing: run `make system`, or `apt-get install {package}`")


def run(argv: Sequence[str | os.PathLike[str]], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed; a failure shows that output."""
    env = {**os.environ, **(env or {})}
    words = [os.fspath(word) for word in argv]
    if cwd == ROOT and fork_server.serves(words):
        done = fork_server.run(words, env=env)
        done.stdout += done.stderr
    else:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}. Its output:\n{done.stdout}")
    return done.stdout


def chromium_path() -> Path:
    """The Chromium for playwright: `chromium.launch(executable_path=…, args=["--no-sandbox"])`."""
    return program("chromium", "chromium-browser", "google-chrome", package="chromium")


@dataclass
class Server:
    """One process and the port it answers on."""

    argv: Sequence[str]
    port: int
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    process: subprocess.Popen[bytes] | fork_server.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def output(self) -> str:
        """All that the process has printed so far, on both streams."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        """Start the process and wait until the port answers."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **self.env}
        with self.log.open("ab") as log:
            if self.cwd == ROOT and fork_server.serves(self.argv):
                self.process = fork_server.start(
                    self.argv, env=env, stdin=subprocess.DEVNULL, stdout=log.fileno(), stderr=log.fileno()
                )
            else:
                self.process = subprocess.Popen(
                    self.argv,
                    cwd=self.cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.port):
            if self.process.poll() is not None:
                raise RuntimeError(self._failure(f"ended with {self.process.returncode} before it answered"))
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(self._failure(f"did not answer within {START_SECONDS:.0f} s"))
            time.sleep(0.02)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the process and all that it started; what does not go when asked is killed."""
        if self.process is None:
            return
        group, process, self.process = self.process.pid, self.process, None
        with suppress(ProcessLookupError):
            os.killpg(group, sig)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.wait()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Stopped inside the block, started again after it, on the same port."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _failure(self, what: str) -> str:
        return f"{' '.join(self.argv)} {what}. The end of its output ({self.log}):\n{self.output()[-4000:]}"


@contextmanager
def serve(
    argv: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    *,
    cwd: Path = ROOT,
) -> Iterator[Server]:
    """Run a server inside the block. `{port}` inside an argument becomes the port, a free one if none is given.

    `env` is added to this process's environment. The server's output is in `Server.output()`.
    """
    port = port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="amesh-serve-"))
    words = [os.fspath(word).replace("{port}", str(port)) for word in argv]
    server = Server(argv=words, port=port, log=folder / "output.log", env=dict(env or {}), cwd=cwd)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def gunicorn(app: str = "tests.wsgi:application", workers: int = 1, *options: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", app, "-b", f"{HOST}:{{port}}", "-w", str(workers), *options]


def uvicorn(app: str = "tests.asgi:application", *options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", "{port}", *options]


def daphne(app: str = "tests.asgi:application", *options: str) -> list[str]:
    return [sys.executable, "-m", "daphne", "-b", HOST, "-p", "{port}", *options, app]


def runserver(*options: str) -> list[str]:
    return [sys.executable, "-m", "django", "runserver", f"{HOST}:{{port}}", "--noreload", *options]


#: The four servers that the wire tests run against: name → the function that makes its command line.
SERVERS: dict[str, Callable[[], list[str]]] = {
    "gunicorn": gunicorn,
    "uvicorn": uvicorn,
    "daphne": daphne,
    "runserver": runserver,
}


@dataclass
class Redis(Server):
    """A redis-server that keeps nothing. `flush()` empties it, `down()` takes it away for a while."""

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def flush(self) -> None:
        self.command("FLUSHALL")

    def command(self, *words: str) -> str:
        """Send one command and return the first line of the answer."""
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            parts = [f"*{len(words)}\r\n", *(f"${len(w.encode())}\r\n{w}\r\n" for w in words)]
            connection.sendall("".join(parts).encode())
            return connection.makefile("rb").readline().decode().strip()


@contextmanager
def running_redis(appendonly: str = "no") -> Iterator[Redis]:
    binary = program("redis-server", "valkey-server", package="redis-server")
    folder = Path(tempfile.mkdtemp(prefix="amesh-redis-"))
    port = free_port()
    options = {"port": str(port), "bind": HOST, "save": "", "appendonly": appendonly, "dir": str(folder)}
    argv = [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
    redis = Redis(argv=argv, port=port, log=folder / "output.log", cwd=folder)
    try:
        redis.start()
        yield redis
    finally:
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Postgres(Server):
    """A PostgreSQL that trusts whoever asks and never syncs."""

    def django(self, name: str = "postgres") -> dict[str, str]:
        """The entry of DATABASES for the database `name`."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": "amesh",
            "HOST": HOST,
            "PORT": str(self.port),
        }

    def start(self) -> None:
        super().start()
        _wait_until(lambda: _postgres_ready(self))

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        super().stop(sig)

    def execute(self, sql: str) -> None:
        """Run one statement outside a transaction, in the database `postgres`."""
        import psycopg

        with psycopg.connect(host=HOST, port=self.port, user="amesh", dbname="postgres", autocommit=True) as connection:
            connection.execute(sql.encode())


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's, newest first
    initdb = program("initdb", package="postgresql", folders=binaries)
    server = program("postgres", package="postgresql", folders=binaries)
    # Not pytest's folder: only its owner can enter that, and PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="amesh-pg-", dir="/tmp"))
    become: list[str] = []
    if os.geteuid() == 0:
        account = _postgres_account()
        os.chown(folder, account.pw_uid, account.pw_gid)
        become = [str(program("setpriv", package="util-linux")), f"--reuid={account.pw_uid}"]
        become += [f"--regid={account.pw_gid}", "--clear-groups"]
    port = free_port()
    data = folder / "data"
    try:
        run(
            [*become, initdb, "-D", data, "-U", "amesh", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=folder,
        )
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        argv = [*become, str(server), "-D", str(data), "-p", str(port)]
        argv += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        postgres = Postgres(argv=argv, port=port, log=folder / "output.log", cwd=folder)
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root and there is no user `postgres`: run `make system`")


def _postgres_ready(postgres: Postgres) -> bool:
    import psycopg

    try:
        postgres.execute("SELECT 1")
    except psycopg.OperationalError:  # it accepts connections a moment before it serves them
        return False
    return True


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=0.2):
        return True
    return False


def _wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"Not ready within {START_SECONDS:.0f} s: look at the server's output above.")
        time.sleep(0.05)
