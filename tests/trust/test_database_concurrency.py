"""Processes that change the sealed list at once, and processes that are killed meanwhile; on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import IsolationLevel
from pytest_django.plugin import DjangoDbBlocker

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import SealedList, current, current_list, keys, snapshot
from amesh_django.trust.verified import Snapshot
from authmesh.device import LocalDevice
from authmesh.protocol import DeviceEntry, device_id
from tests.support import fork_server
from tests.support.database_worker import WHEN, public_key
from tests.support.databases import EACH_ON_ONE_PAIR, as_default, environment
from tests.support.services import run

Start = Callable[..., fork_server.Process]


def worker_environment(database: dict[str, str], server: LocalDevice) -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": "tests.settings", "AUTH_MESH_DIR": str(server.path), **environment(database)}


@pytest.fixture
def start(default_database: dict[str, str], amesh_server: LocalDevice) -> Iterator[Start]:
    """Start a worker process on this database, with this server's identity."""
    started = []

    def begin(what: str, seed: str, count: int) -> fork_server.Process:
        argv = [sys.executable, "-m", "tests.support.database_worker", what, seed, str(count)]
        process = fork_server.start(argv, env={**os.environ, **worker_environment(default_database, amesh_server)})
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_no_change_is_lost_and_nothing_is_revived(start: Start, amesh_server: Any) -> None:
    for process in [start("add", "a", 12), start("add", "b", 12), start("add", "shared", 1)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    workers = [start("revoke", "a", 12), start("grant", "b", 12), start("add", "c", 12), start("add", "d", 12)]
    workers += [start("permit", "e", 12), start("permit", "f", 12)]
    for process in workers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = {entry.device_id: entry for entry in DatabaseAllowList().read()}
    expected = {device_id(public_key(seed, n)) for seed in ("b", "c", "d") for n in range(12)}
    shared = found.pop(device_id(public_key("shared", 0)))
    assert shared.permissions == {f"{seed}-{n}": True for seed in ("e", "f") for n in range(12)}
    assert set(found) == expected
    assert all(found[device_id(public_key("b", n))].permissions == {"shell": True} for n in range(12))
    assert DatabaseAllowList().verify().ok


@pytest.fixture
def first_device_of_another(
    postgres_database: dict[str, str], amesh_server: LocalDevice, django_db_blocker: DjangoDbBlocker
) -> Iterator[list[str]]:
    """On PostgreSQL: a process that adds the first device of all just after this one has seen that there is no seal."""
    read_seal = SealedList.read_seal
    added = []

    def read(self: SealedList) -> Any:
        row = read_seal(self)
        if row is None and not added:
            added.append(device_id(public_key("other", 0)))
            command = [sys.executable, "-m", "tests.support.database_worker", "add", "other", "1"]
            run(command, env=worker_environment(postgres_database, amesh_server))
        return row

    with django_db_blocker.unblock(), as_default(postgres_database), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedList, "read_seal", read)
        yield added


def test_a_first_device_that_comes_in_between_is_no_manipulation(first_device_of_another: list[str]) -> None:
    mine = DeviceEntry.new(public_key("mine", 0), "mine", "target", added_at=WHEN)
    DatabaseAllowList().add(mine)
    assert {entry.device_id for entry in DatabaseAllowList().read()} == {mine.device_id, *first_device_of_another}
    assert DatabaseAllowList().verify().ok


def test_a_first_device_that_comes_during_a_check_is_no_manipulation(first_device_of_another: list[str]) -> None:
    found = DatabaseAllowList().verify()
    assert first_device_of_another
    assert (found.ok, found.devices, found.problems) == (True, 1, [])


def test_a_seal_that_comes_while_it_is_to_be_locked_is_locked(
    postgres_database: dict[str, str], amesh_server: LocalDevice, django_db_blocker: DjangoDbBlocker
) -> None:
    """On PostgreSQL: another process makes it after this one has found none to lock, and before it reads."""
    read_seal, begun = SealedList.read_seal, []

    def read(self: SealedList) -> Any:
        if not begun:
            begun.append(threading.Thread(target=add, args=("other",)))
            begun[0].start()
            begun[0].join()
        return read_seal(self)

    with django_db_blocker.unblock(), as_default(postgres_database), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealedList, "read_seal", read)
        with transaction.atomic():
            row = SealedList("default")._lock_seal()
            assert row is not None
            with closing(connection.copy()) as other, other.cursor() as cursor:
                cursor.execute("SELECT id FROM amesh_allowlistseal FOR UPDATE SKIP LOCKED")
                assert cursor.fetchall() == []


def add(seed: str) -> None:
    """Add a device, as another thread."""
    DatabaseAllowList().add(DeviceEntry.new(public_key(seed, 0), seed, "target", added_at=WHEN))
    connection.close()


def test_after_a_change_that_was_undone_others_may_go_on_all_the_time(
    postgres_database: dict[str, str],
    amesh_server: LocalDevice,
    django_db_blocker: DjangoDbBlocker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On PostgreSQL: the lock of the list goes with the savepoint, the transaction does not."""
    build, seeds = Snapshot.build, iter("bc")

    def go_on(*arguments: Any) -> Any:
        if seed := next(seeds, ""):
            others.append(threading.Thread(target=add, args=(seed,)))
            others[-1].start()
            others[-1].join(0.2 if seed == "c" else None)  # which waits for the lock, and comes later
        return build(*arguments)

    others: list[threading.Thread] = []
    with django_db_blocker.unblock(), as_default(postgres_database):
        add("a")
        with transaction.atomic():
            with suppress(RuntimeError), transaction.atomic():
                DatabaseAllowList().add(DeviceEntry.new(public_key("undone", 0), "undone", "target", added_at=WHEN))
                raise RuntimeError
            monkeypatch.setattr(Snapshot, "build", go_on)
            assert current_list().snapshot().by_key.keys() >= {public_key("a", 0), public_key("b", 0)}
        for other in others:
            other.join()
        assert DatabaseAllowList().verify().ok


@pytest.mark.parametrize("what", ["the list", "some rows"])
def test_a_writer_that_is_in_the_way_of_a_reader_with_repeatable_read(
    postgres_database: dict[str, Any],
    amesh_server: LocalDevice,
    django_db_blocker: DjangoDbBlocker,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """On PostgreSQL: writers keep changing the list. The reader locks them out, and the last one commits while it waits for that."""
    build, others, has_written = Snapshot.build, [], threading.Event()

    def write() -> None:
        with transaction.atomic():
            DatabaseAllowList().add(DeviceEntry.new(public_key("c", 0), "c", "target", added_at=WHEN))
            has_written.set()
            with closing(connection.copy()) as watcher:
                wait_until_one_waits_for_a_lock(watcher)
        connection.close()

    def disturb() -> None:
        """Change the list, and then lock it, once."""
        if not others:
            others.append(threading.Thread(target=add, args=("b",)))
            others[0].start()
            others[0].join()
            others.append(threading.Thread(target=write))
            others[1].start()
            assert has_written.wait(10)

    def build_late(*arguments: Any) -> Any:
        disturb()
        return build(*arguments)

    def read() -> list[Device]:
        disturb()
        return list(Device.objects.all())

    isolation = {"OPTIONS": {"isolation_level": IsolationLevel.REPEATABLE_READ}}
    with django_db_blocker.unblock(), as_default({**postgres_database, **isolation}):
        add("a")
        monkeypatch.setattr(snapshot, "_MAX_ATTEMPTS", 1)
        if what == "the list":
            monkeypatch.setattr(Snapshot, "build", build_late)
            current_list().snapshot()
        else:
            current_list().snapshot()
            current_list().verified(read)
        others[1].join(10)
        assert len(current_list().snapshot().by_key) == 3


def wait_until_one_waits_for_a_lock(watcher: BaseDatabaseWrapper) -> None:
    for _again in range(1000):
        with watcher.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            if cursor.fetchone() != (0,):
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits for the lock")


def test_keys_that_are_derived_while_all_is_forgotten(
    amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither thread waits for the other forever."""
    forget, secret = threading.Thread(target=lifecycle.reset, daemon=True), keys._seal_secrets
    derive = threading.Thread(target=keys.seal_keys, daemon=True)

    def late(device: LocalDevice | None = None) -> list[tuple[bytes, str]]:
        forget.start()
        forget.join(0.1)  # it has come as far as it can
        return secret(device)

    monkeypatch.setattr(keys, "_seal_secrets", late)
    derive.start()
    derive.join(10)
    forget.join(10)
    assert not derive.is_alive() and not forget.is_alive()


@pytest.mark.process
@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_kill_9_leaves_the_old_or_the_new_list(start: Start, amesh_server: Any) -> None:
    chance = random.Random(5)
    done: dict[str, int] = {}
    for round_ in range(6):
        seed = f"kill{round_}"
        process = start("add", seed, 10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.25)
        process.kill()
        lines = process.communicate()[0].split()
        done[seed] = 1 + len([line for line in lines if line.isdigit()])
        with suppress(AttributeError):
            current.reset()
        assert DatabaseAllowList().verify().ok
        ids = {entry.device_id for entry in DatabaseAllowList().read()}
        for seed_, count in done.items():  # what was reported as done is there; at most one more
            there = sum(device_id(public_key(seed_, n)) in ids for n in range(count + 2))
            assert count <= there <= count + 1
