"""The project that ships: its settings from environment variables, and its secret key."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from relay_project.environment import flag, secret_key, words
from tests.support import cheap_keys
from tests.support.services import ROOT, run, running_redis

pytestmark = pytest.mark.process

SHOW = """
import json
from relay_project import settings
names = "DEBUG ALLOWED_HOSTS SESSION_COOKIE_SECURE CSRF_COOKIE_SECURE SECURE_HSTS_SECONDS DATABASES CACHES AMESH SECRET_KEY".split()
found = {name: getattr(settings, name) for name in names}
found["redirect"] = getattr(settings, "SECURE_SSL_REDIRECT", False)
print(json.dumps(found))
"""

SHOW_CONNECTION = """
import django
django.setup()
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SHOW statement_timeout")
    print(*cursor.fetchone())
connection.close()
assert connection.pool.get_stats()["requests_num"] == 1, "not from the pool"
connection.close_pool()
"""


def shown(folder: Path, **environment: str) -> dict[str, Any]:
    """Return the settings of a process that has no other environment variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env={**kept, "DJANGO_DATA_DIR": str(folder / "data"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_defaults_are_safe(tmp_path: Path) -> None:
    found = shown(tmp_path)
    assert found["DEBUG"] is False
    assert found["ALLOWED_HOSTS"] == ["localhost", "127.0.0.1", "[::1]"]
    assert found["DATABASES"]["default"]["NAME"] == str(tmp_path / "data/db.sqlite3")
    assert "locmem" in found["CACHES"]["default"]["BACKEND"]
    relay = {"ALLOWED_ORIGINS": []}
    assert found["AMESH"].pop("NONCE_CACHE") == "default"
    assert found["AMESH"].pop("SCOPES").keys() == {"readings:read", "readings:write"}
    assert found["AMESH"] == {
        "SEAL_KEY_FILE": None,
        "URL": None,
        "PROTECT": ["/protected/"],
        "REQUIRE_APPROVAL": False,
        "RELAY": relay,
    }
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert len(found["SECRET_KEY"]) >= 50


def test_a_server_that_is_reached_from_elsewhere_asks_for_https(tmp_path: Path) -> None:
    found = shown(tmp_path, DJANGO_ALLOWED_HOSTS="mesh.example, 127.0.0.1")
    assert found["ALLOWED_HOSTS"] == ["mesh.example", "127.0.0.1"]
    assert found["SESSION_COOKIE_SECURE"] and found["CSRF_COOKIE_SECURE"] and found["SECURE_HSTS_SECONDS"] > 0
    assert found["redirect"] is False  # without a word about a proxy it could not tell https from http
    assert shown(tmp_path, DJANGO_ALLOWED_HOSTS="mesh.example", DJANGO_BEHIND_PROXY="1")["redirect"] is True
    assert shown(tmp_path, DJANGO_ALLOWED_HOSTS="mesh.example", DJANGO_HTTPS="0")["SESSION_COOKIE_SECURE"] is False
    assert shown(tmp_path)["SESSION_COOKIE_SECURE"] is False


def test_what_the_environment_says(tmp_path: Path) -> None:
    found = shown(
        tmp_path,
        DJANGO_SECRET_KEY="k" * 50,
        DJANGO_DEBUG="yes",
        REDIS_URL="redis://127.0.0.1:1/0",
        DJANGO_DB_ENGINE="django.db.backends.postgresql",
        DJANGO_DB_NAME="mesh",
        DJANGO_DB_HOST="db",
        AUTH_MESH_DIR="/srv/amesh",
        AMESH_SEAL_KEY_FILE="/srv/seal.key",
    )
    assert found["SECRET_KEY"] == "k" * 50 and not (tmp_path / "data/secret_key").exists()
    assert found["DEBUG"] is True
    assert found["CACHES"]["default"] == {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": "redis://127.0.0.1:1/0",
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 2, "SOCKET_TIMEOUT": 2},
    }
    database = found["DATABASES"]["default"]
    assert (database["ENGINE"], database["NAME"], database["HOST"]) == ("django.db.backends.postgresql", "mesh", "db")
    assert found["AMESH"]["SEAL_KEY_FILE"] == "/srv/seal.key"
    assert "DIR" not in found["AMESH"]  # the app itself reads AMESH_DIR and AUTH_MESH_DIR


def test_flags_and_words() -> None:
    assert flag("X", environ={}) is False and flag("X", True, {}) is True
    assert flag("X", environ={"X": " Yes "}) is True and flag("X", True, {"X": "off"}) is False
    with pytest.raises(ImproperlyConfigured, match="Set it to 1 or 0"):
        flag("X", environ={"X": "maybe"})
    assert words("X", "a,b", {}) == ["a", "b"] and words("X", "a", {"X": " c , ,d"}) == ["c", "d"]


def test_the_secret_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secret_key"
    with ThreadPoolExecutor(16) as pool:  # as many workers, all starting on an empty folder
        keys = set(pool.map(lambda _: secret_key(file, {}), range(64)))
    assert len(keys) == 1 and keys == {file.read_text()}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["secret_key"]


def test_a_secret_key_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret_key"
    secret_key(file, {})
    file.chmod(0o644)
    with pytest.raises(ImproperlyConfigured, match="chmod 600"):
        secret_key(file, {})
    file.chmod(0o600)
    for text in ("", "short"):
        file.write_text(text)
        with pytest.raises(ImproperlyConfigured, match="Delete it") as refused:
            secret_key(file, {})
        assert not text or text not in str(refused.value).replace("shorter", "")
    for given in ("", "short"):
        with pytest.raises(ImproperlyConfigured, match="DJANGO_SECRET_KEY is shorter"):
            secret_key(file, {"DJANGO_SECRET_KEY": given})
    file.unlink()
    file.mkdir(0o700)
    with pytest.raises(ImproperlyConfigured, match="DJANGO_DATA_DIR"):
        secret_key(file, {})


def test_the_project_passes_its_own_checks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "check", "--deploy", "--fail-level", "ERROR"],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "relay_project.settings",
            "DJANGO_DATA_DIR": str(tmp_path / "data"),
            "DJANGO_ALLOWED_HOSTS": "mesh.example",
            "DJANGO_BEHIND_PROXY": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # What is left is for the operator of a server that has no Redis yet.
    assert {line.split("(")[1].split(")")[0] for line in done.stderr.splitlines() if line.startswith("?:")} <= {
        "amesh.W001",
        "security.W005",
        "security.W021",
    }


def test_the_project_has_what_production_needs(tmp_path: Path, postgres_database: dict[str, str]) -> None:
    """With PostgreSQL and Redis, no check has anything to say, and the database ends a statement that takes too long."""
    with running_redis(appendonly="yes") as own:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "relay_project.settings",
            "DJANGO_DATA_DIR": str(tmp_path / "data"),
            "AUTH_MESH_DIR": str(tmp_path / "device"),
            "DJANGO_ALLOWED_HOSTS": "mesh.example",
            "DJANGO_BEHIND_PROXY": "1",
            "REDIS_URL": own.url,
            **{f"DJANGO_DB_{name}": str(value) for name, value in postgres_database.items()},
        }
        run(cheap_keys.argv(True, "init", "--name", "server", "--backend", "encrypted-file"), env=environment)
        check = [sys.executable, "-W", "error", "manage.py", "check", "--deploy", "--database", "default"]
        assert "amesh." not in run(check, env=environment)
        assert "30s" in run([sys.executable, "-W", "error", "-c", SHOW_CONNECTION], env=environment).split()
