"""A crash of either side at any step: the machine enrolls on the next try, with the same key, and is counted once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django.plugin import DjangoDbBlocker

from amesh_django.enrollment import tokens
from amesh_django.models import Device, EnrollmentToken
from authmesh.client import enrolling
from authmesh.device import LocalDevice, read_identity
from authmesh.protocol.enrollment import parse_token
from authmesh.protocol.errors import AmeshError
from tests.support.databases import as_default, environment
from tests.support.services import ROOT, Server, gunicorn, serve

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def server(
    sqlite_database: dict[str, str], amesh_server: LocalDevice, django_db_blocker: DjangoDbBlocker
) -> Iterator[Server]:
    """A server with two workers. Its database is that of this process, too."""
    (amesh_server.path / "identity.json").write_text(
        (amesh_server.path / "identity.json").read_text().replace('"maxControllers": 100', '"maxControllers": 1000')
    )
    env = {**environment(sqlite_database), "AUTH_MESH_DIR": str(amesh_server.path)}
    with (
        django_db_blocker.unblock(),
        as_default(sqlite_database),
        serve(gunicorn("tests.wsgi:application", 2), env) as it,
    ):
        yield it


def make(server: Server) -> str:
    return tokens.make(url=f"{server.url}/amesh/", name="m", uses=1000, lifetime=3600, by="test").text


@pytest.mark.unversioned  # no version changes the order in which files are written
def test_a_machine_is_killed_at_every_step(server: Server, tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "tests.enrollment.killed", str(tmp_path)],
        input=make(server),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    found = told["found"]
    assert [case["ended"] for case in found if case["ended"] != 9] == [0, 0]  # the last one of each round is not killed
    assert len(found) > 20
    for case in found:
        left, after = case["left"], case["after"]
        assert case["then"] == 0 and after["targets"] == after["servers"] == [told["server"]], case
        assert left["id"] in (None, after["id"]), case  # the key that the server may know is not lost
    assert Device.objects.count() == EnrollmentToken.objects.get().uses == len(found)
    assert {row.device_id for row in Device.objects.all()} == {case["after"]["id"] for case in found}


def test_the_server_is_killed_again_and_again(server: Server, tmp_path: Path) -> None:
    token = parse_token(make(server))
    names = [tmp_path / f"m{number}" for number in range(12)]
    keys: dict[Path, set[str]] = {path: set() for path in names}
    failures: list[str] = []
    end = time.monotonic() + 60

    def enroll(path: Path) -> None:
        while time.monotonic() < end:
            try:
                keys[path].add(enrolling.enroll(token, directory=path, name=path.name).identity.device_id)
                return
            except AmeshError as error:
                failures.append(error.code)
                keys[path].add(read_identity(path).device_id)

    threads = [threading.Thread(target=enroll, args=(path,)) for path in names]
    server.stop(signal.SIGKILL)
    for number, thread in enumerate(threads):
        thread.start()
        if number % 4 == 0:
            server.start()
        if number % 4 == 3:
            server.stop(signal.SIGKILL)
    server.start()
    for thread in threads:
        thread.join()
    assert "server_unreachable" in failures
    assert all(len(found) == 1 for found in keys.values()), keys
    assert Device.objects.count() == EnrollmentToken.objects.get().uses == len(names)
