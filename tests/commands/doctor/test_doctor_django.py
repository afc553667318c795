"""`manage.py amesh_doctor`: settings, system checks, migrations, the nonce cache, a database that is down."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from amesh_django import lifecycle
from amesh_django.test.devices import EphemeralDevice
from authmesh.device import LocalDevice
from tests.commands.doctor.doctors import Examined, FrontEnd
from tests.support import databases, services


@pytest.fixture
def front_end(tmp_path: Path, sqlite_database: dict[str, str]) -> FrontEnd:
    found = FrontEnd(tmp_path, sqlite_database)
    found.make()
    return found


def here(*words: str) -> Examined:
    """Run the command in this process, in the transaction of the test."""
    out, code = io.StringIO(), 0
    try:
        call_command("amesh_doctor", "--json", "--no-relay", *words, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        code = error.returncode
    return Examined(code, json.loads(out.getvalue()), "")


def test_all_that_a_server_needs(front_end: FrontEnd, redis: services.Redis) -> None:
    redis.command("CONFIG", "SET", "appendonly", "yes")  # until it is started again below
    found = front_end.doctor(TEST_REDIS_URL=redis.url)
    assert found.code == 0, found
    for id in ("settings", "system-checks", "migrations", "nonce-cache", "check-address", "allow-list"):
        assert found.status(id) == "ok", found.all(id)
    assert "for all processes" in found.text("nonce-cache") and "sqlite" in found.text("migrations")
    assert "/amesh/check" in found.text("check-address") and "django " in found.text("versions")
    with redis.down():
        found = front_end.doctor(TEST_REDIS_URL=redis.url)
        assert found.code == 1 and found.problems() == {"nonce-cache"}
        assert "cannot be reached" in found.text("nonce-cache")


@pytest.mark.process
def test_local_memory_is_a_warning(front_end: FrontEnd) -> None:
    found = front_end.doctor()
    assert found.status("system-checks") == "warning" and "amesh.W001" in found.text("system-checks")
    assert "several do not share them" in found.text("nonce-cache")


@pytest.mark.process
def test_a_seal_key_file_that_is_open_to_others(front_end: FrontEnd, tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    path.write_bytes(bytes(32))
    path.chmod(0o644)
    found = front_end.doctor(TEST_SEAL_KEY_FILE=str(path))
    assert found.code == 1 and "amesh.W006" in found.text("system-checks")
    assert found.text("system-checks").count(f"chmod 600 {path}") == 1


@pytest.mark.process
def test_tables_that_are_not_there(tmp_path: Path) -> None:
    front_end = FrontEnd(tmp_path, databases.sqlite(tmp_path / "new.sqlite3"))
    front_end.make()
    found = front_end.doctor()
    assert found.code == 1 and found.problems() >= {"allow-list", "migrations"}
    assert "manage.py migrate" in found.text("migrations") and "migrate" in found.text("allow-list")


@pytest.mark.process
def test_a_database_that_is_down(tmp_path: Path) -> None:
    closed = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": "1", "USER": "x"}
    front_end = FrontEnd(tmp_path, closed)
    front_end.make()
    found = front_end.doctor()
    assert found.code == 1 and found.problems() >= {"allow-list", "migrations"} and found.status("key") == "ok"
    assert "ended unexpectedly" not in str(found.document), found.document


@pytest.mark.process
def test_a_database_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = str(silent.getsockname()[1])
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": port}
        front_end = FrontEnd(tmp_path, database)
        front_end.make()
        impatient = tmp_path / "impatient"
        impatient.mkdir()
        (impatient / "sitecustomize.py").write_text(
            "import authmesh.commands.doctor.findings as found\nfound.LOCAL_SECONDS = 3.0\n"
        )
        found = front_end.doctor(PYTHONPATH=f"{impatient}:{front_end.env['PYTHONPATH']}")
    assert found.code == 1 and "allow-list" in found.problems()
    assert "The database did not answer" in found.text("allow-list")
    assert found.status("migrations") == found.status("system-checks") == "skipped"


def test_settings_that_are_wrong(amesh_server: LocalDevice, db: None, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "CLOCK_SKEW": 30, "PROTECT": "/"}
    lifecycle.reset()
    found = here()
    assert found.code == 1 and found.problems() >= {"settings", "identity"}
    assert "'CLOCK_SKEW'" in found.text("settings") and "'PROTECT'" in found.text("settings")
    assert str(amesh_server.path) in found.text("directory")


def test_in_this_process(amesh_server: LocalDevice, db: None) -> None:
    found = here()
    assert found.code == 0 and found.status("allow-list") == "ok", found
    with override_settings(ROOT_URLCONF="amesh_django.relay.urls"):
        assert here().status("check-address") == "skipped"
    with override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}):
        found = here()
        assert found.problems() == {"system-checks", "nonce-cache"} and "amesh.E005" in found.text("system-checks")


@pytest.mark.process
def test_rows_that_were_changed_past_the_app(front_end: FrontEnd, sqlite_database: dict[str, str]) -> None:
    import sqlite3

    front_end.trust(EphemeralDevice("phone"), "controller")
    with sqlite3.connect(sqlite_database["NAME"]) as connection:
        connection.execute("UPDATE amesh_device SET friendly_name = 'drone'")
    connection.close()
    found = front_end.doctor()
    assert found.problems() == {"allow-list"} and "amesh_integrity" in found.text("allow-list")
