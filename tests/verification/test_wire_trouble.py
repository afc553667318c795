"""Running servers while the list changes, by the app or outside of it, and while Redis, the database or the disk fails."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from authmesh.device import init_device
from tests.support import databases, services
from tests.support.services import Server
from tests.verification.wire import DOORS, ONE_OF_EACH_KIND, Answer, Caller, World, said, signed

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

pytestmark = pytest.mark.process

#: Servers with several processes: kind → options, and how many processes answer.
MANY = {"gunicorn": (("-w", "3"), 3), "uvicorn": (("--workers", "2"), 2)}


@pytest.fixture
def any_world(database: dict[str, str], tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> World:
    """A world for one test, on each database in turn."""
    return World(database, tmp_path, django_db_blocker)


class Many:
    """A server with several processes."""

    def __init__(self, server: Server, workers: int) -> None:
        self.server = server
        self.workers = workers

    def ask(self, signer: Caller, door: str = "/decorator/sync") -> set[tuple[int, str]]:
        """Return the answers to one device, at least one of each worker: pairs of status and error."""
        found: set[tuple[int, str]] = set()
        seen: set[str] = set()

        def once(_: int) -> Answer:
            return signed(self.server, signer, "GET", door)

        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                for answer in pool.map(once, range(8)):
                    seen.add(answer.headers["X-Worker"])
                    found.add((answer.status, "" if answer.status == 200 else answer.error))
                if len(seen) >= self.workers:
                    return found
        raise AssertionError(f"only {len(seen)} of {self.workers} workers answered")


@contextmanager
def many(world: World, redis: services.Redis, kind: str) -> Iterator[Many]:
    options, workers = MANY[kind]
    with world.serve(kind, *options, TEST_REDIS_URL=redis.url) as server:
        yield Many(server, workers)


GOOD, REVOKED = {(200, "")}, {(401, "unauthorized")}
BROKEN = {(500, "allow_list_integrity_failure")}


@pytest.mark.parametrize("database", databases.EACH_ON_ONE_PAIR, indirect=True)
@pytest.mark.parametrize("kind", MANY)
def test_a_change_applies_to_the_next_request_in_every_process(
    any_world: World, redis: services.Redis, kind: str
) -> None:
    world = any_world
    with many(world, redis, kind) as server:
        assert server.ask(world.laptop) == GOOD
        assert server.ask(world.stranger) == REVOKED
        with world.allow_list() as devices:
            devices.revoke(world.laptop.device_id, reason="stolen")
            assert server.ask(world.laptop) == REVOKED
            assert server.ask(world.phone) == GOOD
            devices.add(world.entry(world.stranger))
            assert server.ask(world.stranger) == GOOD
            devices.add(world.entry(world.laptop))
            assert server.ask(world.laptop) == GOOD


@pytest.mark.parametrize("database", databases.EACH_ON_ONE_PAIR, indirect=True)
@pytest.mark.parametrize("kind", MANY)
def test_a_change_outside_django_stops_every_process(any_world: World, redis: services.Redis, kind: str) -> None:
    world = any_world
    name = "UPDATE amesh_device SET friendly_name = %s WHERE device_id = %s"
    with many(world, redis, kind) as server:
        assert server.ask(world.laptop) == GOOD
        world.sql(name, "admin laptop", world.phone.device_id)
        for signer in (world.laptop, world.phone, world.stranger):
            assert server.ask(signer) == BROKEN
        world.sql(name, world.phone.name, world.phone.device_id)
        assert server.ask(world.laptop) == GOOD
        assert server.ask(world.stranger) == REVOKED
        world.sql(name, "admin laptop", world.phone.device_id)
        assert server.ask(world.laptop) == BROKEN
        with world.allow_list() as devices:
            report = devices.verify()
            assert not report.ok and any("admin laptop" in problem for problem in report.problems)
            devices.reseal(by="the tests")
        assert server.ask(world.phone) == GOOD
        assert signed(server.server, world.phone, "GET", "/drf").json["device"]["name"] == "admin laptop"


CHANGES = {
    "a revoked device revived": "UPDATE amesh_device SET revoked_at = NULL, revoked_by = '', revoke_reason = '' "
    "WHERE revoked_at IS NOT NULL",
    "a target made a controller": "UPDATE amesh_device SET role = 'controller'",
    "a device removed": "DELETE FROM amesh_device WHERE friendly_name = 'target'",
    "a seal removed": "DELETE FROM amesh_allowlistseal",
    "a seal of another revision": "UPDATE amesh_allowlistseal SET revision = revision + 1",
    "a permission granted": "UPDATE amesh_device SET permissions_json = '{\"shell\":true}'",
}


def test_every_kind_of_change_outside_django_is_detected(any_world: World) -> None:
    world = any_world
    with world.serve("gunicorn") as server:
        for change, statement in CHANGES.items():
            assert signed(server, world.laptop, "GET", "/drf").status == 200, change
            with said(server) as log:
                world.sql(statement)
                for signer in (world.laptop, world.lost, world.target):
                    answer = signed(server, signer, "GET", "/drf")
                    assert (answer.status, answer.error) == (500, "allow_list_integrity_failure"), change
            assert any(line.startswith("CRITICAL amesh_django.allow_list") for line in log), log
            with world.allow_list() as devices:
                devices.reseal()


@pytest.mark.parametrize(("kind", "ignore"), [("gunicorn", "0"), ("uvicorn", "1")], ids=["raising", "ignoring"])
def test_redis_stops_and_comes_back(world: World, redis: services.Redis, kind: str, ignore: str) -> None:
    with world.serve(kind, TEST_REDIS_URL=redis.url, TEST_REDIS_IGNORE_EXCEPTIONS=ignore) as server:
        assert signed(server, world.laptop, "GET", "/drf").status == 200
        with redis.down():
            for door in DOORS:
                answer = signed(server, world.laptop, "GET", door)
                assert (answer.status, answer.error) == (503, "nonce_store_unavailable")
                assert int(answer.headers["Retry-After"]) > 0
        assert signed(server, world.laptop, "GET", "/drf").status == 200


def test_no_disk_space_for_a_body(world: World, tmp_path: Path) -> None:
    """A failure of the server, so not a 401. Bodies that fit into memory are still accepted."""
    folder, large = tmp_path / "uploads", b"x" * 3_000_000
    with world.serve("gunicorn", TEST_UPLOAD_DIR=str(folder)) as server:
        for door in DOORS:
            with said(server) as log:
                answer = signed(server, world.laptop, "POST", door, {}, large)
                assert (answer.status, answer.error) == (503, "body_storage_unavailable")
            assert any(f"The request body cannot be stored in {folder} (No such file" in line for line in log), log
            assert signed(server, world.laptop, "POST", door, {}, b"small").status == 200
        folder.mkdir()
        assert signed(server, world.laptop, "POST", "/drf", {}, large).status == 200


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_postgres_stops_and_comes_back(
    postgres_database: dict[str, str],
    postgres_server: services.Postgres,
    tmp_path: Path,
    django_db_blocker: DjangoDbBlocker,
    kind: str,
) -> None:
    world = World(postgres_database, tmp_path, django_db_blocker)
    with world.serve(kind) as server:
        assert signed(server, world.laptop, "GET", "/drf").status == 200
        with said(server) as log, postgres_server.down():
            for door in DOORS:
                answer = signed(server, world.laptop, "GET", door)
                assert (answer.status, answer.error) == (503, "allow_list_unavailable")
                assert int(answer.headers["Retry-After"]) > 0
        assert sum("allow_list_unavailable" in line for line in log) == len(DOORS), log
        assert signed(server, world.laptop, "GET", "/drf").status == 200


def rejects_everybody(
    world: World,
    server: Server,
    reason: str,
    advice: str,
    expected: tuple[int, str] = (500, "allow_list_integrity_failure"),
) -> None:
    """Assert that a server rejects all requests, and that its log has the reason, but no secrets."""
    with said(server) as log:
        for door in DOORS:
            for signer in (world.laptop, world.stranger):
                answer = signed(server, signer, "GET", door)
                assert (answer.status, answer.error) == expected
    ours = [line for line in log if line.startswith("ERROR amesh_django.verification")]
    assert len(ours) == 2 * len(DOORS), log
    assert all(reason in line and advice in line for line in ours), ours
    assert not any("Traceback" in line for line in log), log
    assert not re.search(r"[0-9a-f]{64}|open sesame", "\n".join(log)), log


def test_a_database_that_is_not_migrated(world: World, tmp_path: Path) -> None:
    world.database = databases.sqlite(tmp_path / "empty.sqlite3")
    with world.serve("gunicorn") as server:
        unavailable = "allow_list_unavailable"
        rejects_everybody(world, server, unavailable, "manage.py migrate", (503, unavailable))


def test_a_server_with_a_wrong_passphrase(world: World) -> None:
    with world.serve("gunicorn", AUTH_MESH_PASSPHRASE="open sesame") as server:
        rejects_everybody(world, server, "wrong_passphrase", "passphrase")


def test_a_server_whose_directory_is_damaged(world: World) -> None:
    directory = world.directory
    key = next((directory / "keys").glob("*.key.json"))
    identity, passphrase = directory / "identity.json", directory / ".passphrase"
    with world.serve("gunicorn") as server:
        with damaged(identity, None):
            rejects_everybody(world, server, "identity_missing", "amesh_init")
        with damaged(identity, identity.read_text()[:40]):
            rejects_everybody(world, server, "directory_error", "Restore it from a backup")
        assert signed(server, world.laptop, "GET", "/drf").status == 200  # repaired without a restart
    problems = [
        (passphrase, None, "passphrase_required", "AUTH_MESH_PASSPHRASE required"),
        (passphrase, "", "passphrase_required", "is empty"),
        (passphrase, "open sesame", "wrong_passphrase", ".passphrase"),
        (key, None, "key_store_error", "estore it"),
        (key, key.read_text()[:100], "key_store_error", "estore it"),
    ]
    # A process that could not unlock the key waits before it tries again, so each problem has a server of its own.
    for file, text, reason, advice in problems:
        with damaged(file, text), world.serve("runserver") as server:
            rejects_everybody(world, server, reason, advice)


@contextmanager
def damaged(file: Path, text: str | None) -> Iterator[None]:
    """Replace the text of a file, or (None) remove the file, inside the block."""
    mode, before = file.stat().st_mode, file.read_text()
    file.chmod(0o600)
    file.unlink() if text is None else file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)
        file.chmod(mode)


def test_a_server_with_another_key(world: World, tmp_path: Path) -> None:
    """A server with another key rejects the list that the first server has sealed."""
    init_device(tmp_path / "other", "other", now=dt.datetime.now(dt.UTC))
    with world.serve("gunicorn", TEST_AMESH_DIR=str(tmp_path / "other")) as server:
        rejects_everybody(world, server, "seal_mismatch", "amesh_integrity")
