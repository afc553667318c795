"""Fixtures of all tests: the servers and databases, and the rule that CI skips nothing."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from amesh_django.test.devices import CHEAP_ARGON2
from tests.support import databases, services
from tests.support.cheap_keys import keys_that_cost
from tests.support.order import long_first
from tests.verification.wire import wire, wire_server, world  # noqa: F401 -- fixtures

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter
    from pytest_django import DjangoDbBlocker

    Database = dict[str, str]

# A developer's own device must never get into a test, nor a test into it.
for name in (
    "AMESH_DIR",
    "AUTH_MESH_DIR",
    "AMESH_PASSPHRASE",
    "AUTH_MESH_PASSPHRASE",
    "AMESH_PASSPHRASE_FILE",
    "AMESH_BOOTSTRAP_TOKEN",
    "AMESH_BOOTSTRAP_RELAYS",
    "AMESH_ENROLL_TOKEN",
    "AMESH_TPM_PIN_FILE",
):
    os.environ.pop(name, None)
os.environ["AMESH_TPM_TCTI"] = "none"  # nor must a key of a test be made in the TPM of this machine

# A shell starts what runs in its background with Ctrl-C ignored, and so would be each program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

IN_CI = os.environ.get("CI") == "true"

#: Fixtures that start a process: a test that asks for one of them is marked ``process`` without further ado.
STARTING = {"redis_server", "postgres_server", "wire", "chromium"}
#: Events of the interpreter (PEP 578) by which a process is started.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec"}
_numbers = itertools.count(1)
#: For the test that runs now: True if it may start no process.
_unmarked: list[bool] = []


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of our own, so that a default like `~/.amesh` leads nowhere."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(autouse=True, scope="session")
def _cheap_keys() -> Iterator[None]:
    """Create cheap key files in this process. Programs that a test starts create those of users, unless the test says otherwise."""
    with keys_that_cost(CHEAP_ARGON2):
        yield


@pytest.fixture(scope="session")
def redis_server() -> Iterator[services.Redis]:
    """A redis-server for all tests of this worker: `.url`, `.port`, `.down()`, `.flush()`."""
    with services.running_redis() as redis:
        yield redis


@pytest.fixture
def redis(redis_server: services.Redis) -> services.Redis:
    """The same redis-server, emptied."""
    redis_server.flush()
    return redis_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[services.Postgres]:
    """A PostgreSQL for all tests of this worker: `.django(name)`, `.execute(sql)`, `.down()`."""
    with services.running_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return databases.sqlite_template(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: services.Postgres) -> services.Postgres:
    return databases.postgres_template(postgres_server)


@pytest.fixture
def sqlite_database(_sqlite_template: Path, tmp_path: Path) -> Database:
    """A migrated SQLite file of this test's own, as an entry of DATABASES."""
    return databases.sqlite_copy(_sqlite_template, tmp_path)


@pytest.fixture
def postgres_database(_postgres_template: services.Postgres) -> Iterator[Database]:
    """A migrated PostgreSQL database of this test's own, as an entry of DATABASES."""
    with databases.postgres_copy(_postgres_template, f"amesh_{next(_numbers)}") as database:
        yield database


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """Each backend in turn; for a server process: `serve(…, env=databases.environment(database))`."""
    chosen: Database = request.getfixturevalue(f"{request.param}_database")
    return chosen


@pytest.fixture
def default_database(database: Database, django_db_blocker: DjangoDbBlocker) -> Iterator[Database]:
    """Each backend in turn, as this process's default database, without a transaction around the test."""
    with django_db_blocker.unblock(), databases.as_default(database):
        yield database


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Where Chromium is."""
    return services.chromium_path()


@pytest.hookimpl(trylast=True)  # after those that leave tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = long_first(items, workers)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        if fixtures & STARTING or {"postgres", "redis"} & {value for value in parameters if isinstance(value, str)}:
            item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that starts a process without the mark, because `make quick` would run it."""
    _unmarked.append(item.get_closest_marker("process") is None)
    try:
        return (yield)
    finally:
        _unmarked.pop()


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    # The interpreter clears this module before the last threads end.
    if STARTS and event in STARTS and _unmarked and _unmarked[-1]:
        raise RuntimeError("This test starts a process: mark it with @pytest.mark.process.")


sys.addaudithook(_refuse)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if IN_CI and reporter and _left_out(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    count = _left_out(terminalreporter)
    if IN_CI and count:
        terminalreporter.section("CI leaves nothing out", red=True, bold=True)
        terminalreporter.line(
            f"{count} test(s) were skipped or expected to fail: install what the reasons above name (`make system`), "
            "or remove the marks."
        )


def _left_out(reporter: TerminalReporter) -> int:
    return sum(len(reporter.stats.get(kind, [])) for kind in ("skipped", "xfailed", "xpassed"))
