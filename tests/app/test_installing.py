"""A project adds the app, serves requests before it has an identity, builds an image, and removes the app."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection

from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import triggers
from tests.support.services import ROOT

#: A project as `django-admin startproject` makes it, as far as installing is concerned.
SETTINGS = """
SECRET_KEY = "a5bfb5ab4c1d8a1d1a24ee5b9a66a50bb8a5d10dfc1a0fb3e2f1f0f4a1d2c3b4"
ALLOWED_HOSTS = ["example.com"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"{more}]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.clickjacking.XFrameOptionsMiddleware",
              "django.middleware.csrf.CsrfViewMiddleware"]
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
SECURE_HSTS_SECONDS = 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}}}
CACHES = {{name: {{"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}} for name in ("default", "amesh")}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


@pytest.mark.process
@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
@pytest.mark.parametrize("more", ["", ', "rest_framework"', ', "rest_framework", "amesh_django"'])
def test_a_build_without_identity_passes_all_checks(tmp_path: Path, document: str, more: str) -> None:
    """Whatever the project has already, the first step works, and a build that has no device directory is not held up."""
    step = re.search(r"^INSTALLED_APPS \+=.*$", (ROOT / document).read_text(), re.MULTILINE)
    assert step
    (tmp_path / "settings.py").write_text(SETTINGS.format(more=more) + step[0])
    done = subprocess.run(
        [sys.executable, "-m", "django", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=tmp_path,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "AUTH_MESH_DIR": str(tmp_path / "nothing")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


@pytest.mark.django_db
def test_a_server_without_identity_says_so_at_the_first_request(
    tmp_path: Path, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AMESH = {"DIR": str(tmp_path)}
    assert AmeshClient(EphemeralDevice()).get("/decorator/sync").status_code == 500
    assert "There is no identity" in caplog.text and "amesh_init" in caplog.text


def test_nothing_is_left_after_migrate_zero(default_database: dict[str, str]) -> None:
    call_command("migrate", verbosity=0)
    anna = get_user_model().objects.create_user("anna")
    anna.user_permissions.add(Permission.objects.get(codename="revoke_device"))
    kind = ContentType.objects.get(app_label="amesh", model="device")
    entry = LogEntry.objects.create(user=anna, content_type=kind, object_id="1", action_flag=ADDITION)
    assert triggers.installed("default") and of_amesh()
    permissions = Permission.objects.exclude(content_type__app_label="amesh").count()

    call_command("migrate", "amesh", "zero", verbosity=0)
    assert of_amesh() == []
    assert not ContentType.objects.filter(app_label="amesh").exists()
    assert Permission.objects.count() == permissions and not anna.user_permissions.exists()
    entry.refresh_from_db()  # the history of the admin stays
    assert entry.content_type is None

    call_command("migrate", verbosity=0)
    assert triggers.installed("default")
    assert Permission.objects.filter(codename="revoke_device").exists()


def of_amesh() -> list[str]:
    """Return the names of what the database has of the app: tables, indexes, triggers, functions, sequences, and migrations."""
    postgres = """
        SELECT relname::text AS name FROM pg_class UNION SELECT tgname::text FROM pg_trigger UNION SELECT proname::text FROM pg_proc
        UNION SELECT conname::text FROM pg_constraint UNION SELECT typname::text FROM pg_type"""
    sqlite = "SELECT name FROM sqlite_master"
    names = postgres if connection.vendor == "postgresql" else sqlite
    query = f"SELECT name FROM ({names} UNION SELECT app FROM django_migrations) AS found WHERE name LIKE '%amesh%'"  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(query)
        return [name for (name,) in cursor.fetchall()]
