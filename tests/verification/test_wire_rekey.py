"""Running servers while the secret of the seal, and the identity of the server, are replaced."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import fork_server
from tests.support.databases import EACH_ON_ONE_PAIR
from tests.support.services import Server
from tests.trust.rollbacks import Backup
from tests.verification.test_wire_trouble import rejects_everybody
from tests.verification.wire import World, signed

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def world(database: dict[str, str], tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> World:
    return World(database, tmp_path, django_db_blocker)


def manage(world: World, *words: str, **env: str) -> str:
    argv = [sys.executable, "-m", "django", *words]
    done = fork_server.run(argv, env={**os.environ, **world.environment(**env)}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(world: World, server: Server) -> int:
    return signed(server, world.laptop, "GET", "/decorator/sync").status


@contextmanager
def never_rejected(world: World, server: Server) -> Iterator[None]:
    """Send requests during the block, and assert that each was accepted."""
    done, found = threading.Event(), list[int]()

    def ask() -> None:
        while not done.wait(0.02):
            found.append(status(world, server))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert len(found) > 5
    assert set(found) == {200}


@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_a_secret_and_an_identity_are_replaced_without_an_outage(world: World, tmp_path: Path) -> None:
    """The list is sealed with the key of the server, then with a file, then the server gets another identity."""
    key = tmp_path / "seal.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    both, new = {"TEST_SEAL_KEY_FILES": f"{key},own"}, {"TEST_SEAL_KEY_FILE": str(key)}
    with world.serve("gunicorn", "-w", "2", **both) as server, world.serve("gunicorn") as not_restarted:
        with never_rejected(world, server):
            assert (status(world, server), status(world, not_restarted)) == (200, 200)
            manage(world, "amesh_grant", world.laptop.device_id, "--shell", **both)  # keeps the old secret
            assert (status(world, server), status(world, not_restarted)) == (200, 200)
            with world.allow_list():
                backup = Backup()
            manage(world, "amesh_grant", world.phone.device_id, "--shell", **both)
            text = manage(world, "amesh_integrity", "--rekey", "--yes", **both)
            assert "are sealed with the first secret now" in text
            assert status(world, server) == 200
            manage(world, "amesh_grant", world.laptop.device_id, "--no-shell", **both)
            with world.serve("gunicorn", **new) as restarted:
                assert status(world, restarted) == 200
                assert "matches its seal" in manage(world, "amesh_integrity", **new)
                manage(world, "amesh_init", "--name", "renewed", "--max-controllers", "10", "--force", "--yes", **new)
                assert (status(world, restarted), status(world, server)) == (200, 200)
        rejects_everybody(world, not_restarted, "seal_mismatch", "AMESH['SEAL_KEY_FILE']")
    with world.serve("gunicorn", **new) as renewed:
        assert status(world, renewed) == 200
        with world.allow_list():
            backup.restore()
        assert status(world, renewed) == 500
