"""Processes that change the sealed list at once, and processes that are killed while they do; SQLite and PostgreSQL."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from amesh_django import snapshot
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.device import Device as ThisDevice
from amesh_django.protocol import device_id
from tests.database_worker import public_key
from tests.databases import environment
from tests.services import ROOT

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(default_database: dict[str, str], amesh_server: ThisDevice) -> Iterator[Start]:
    """Start a worker process on this database, with this server's identity."""
    import os

    started = []

    def run(what: str, seed: str, count: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.database_worker", what, seed, str(count)],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "AUTH_MESH_DIR": str(amesh_server.path),
                **environment(default_database),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


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
            snapshot.reset()
        assert DatabaseAllowList().verify().ok
        ids = {entry.device_id for entry in DatabaseAllowList().read()}
        for seed_, count in done.items():  # what was reported as done is there; at most one more
            there = sum(device_id(public_key(seed_, n)) in ids for n in range(count + 2))
            assert count <= there <= count + 1
