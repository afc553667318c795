"""Real databases for the tests: made once with all migrations, copied for each test that asks."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.services import Postgres, run

TEMPLATE = "amesh_template"
#: Parameters of the fixture `database` for long tests whose subject is not the database: one each is enough on the second pair of versions.
EACH_ON_ONE_PAIR = (pytest.param("sqlite", marks=pytest.mark.unversioned), "postgres")


def environment(database: Mapping[str, str]) -> dict[str, str]:
    """What a process with `tests.settings` needs in its environment to use this database."""
    return {f"TEST_DB_{name}": value for name, value in database.items()}


def migrate(database: Mapping[str, str]) -> None:
    """Bring a database up to date, in a process of its own: this one may be in the middle of a test."""
    command = [sys.executable, "-m", "django", "migrate", "--verbosity=0"]
    run(command, env={"DJANGO_SETTINGS_MODULE": "tests.settings", **environment(database)})


def sqlite(path: Path) -> dict[str, str]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}


def sqlite_template(folder: Path) -> Path:
    path = folder / "template.sqlite3"
    migrate(sqlite(path))
    return path


def sqlite_copy(template: Path, folder: Path) -> dict[str, str]:
    path = folder / "db.sqlite3"
    source, target = sqlite3.connect(template), sqlite3.connect(path)
    source.backup(target)
    source.close()
    target.close()
    return sqlite(path)


def postgres_template(postgres: Postgres) -> Postgres:
    postgres.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(postgres.django(TEMPLATE))
    return postgres


@contextmanager
def postgres_copy(postgres: Postgres, name: str) -> Iterator[dict[str, str]]:
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    try:
        yield postgres.django(name)
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def as_default(database: Mapping[str, str]) -> Iterator[None]:
    """Make `database` this process's default one, for every thread. Nothing is rolled back: it is a throw-away."""
    from django.db import connections

    before, settings = connections["default"], connections.settings["default"]
    connections.settings["default"] = connections.configure_settings({"default": {**database}})["default"]
    connections["default"] = connections.create_connection("default")
    try:
        yield
    finally:
        connections["default"].close()
        connections.settings["default"] = settings
        connections["default"] = before
