"""For the tests: a list that is restored as from a backup, and processes that look at it, or die at the worst moment.

Usage: ``python -m tests.trust.rollbacks look`` prints ``ok``, or why the list is rejected; ``python -m tests.trust.rollbacks die WHERE``
adds a device and is killed ``before noting`` or ``before counting``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django

from tests.support import fork_server
from tests.support.databases import environment

RECORD = "list_revision.json"


class Backup:
    """Devices, audit log and seal as they are now."""

    def __init__(self) -> None:
        from amesh_django.models import AllowListSeal, AuditEvent, AuditSeal, Device

        self._tables: list[tuple[Any, list[dict[str, Any]]]] = [
            (model, list(model.objects.values())) for model in (Device, AuditEvent, AuditSeal, AllowListSeal)
        ]

    def restore(self) -> None:
        """Restore them, outside Django."""
        from django.db import connection, transaction
        from django.db.models import QuerySet

        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("DELETE FROM amesh_deviceactivity")
            for model, rows in self._tables:  # the seal last: it says that nothing was touched
                cursor.execute(f"DELETE FROM {model._meta.db_table}")  # noqa: S608
                QuerySet(model).bulk_create([model(**row) for row in rows])


def new_process(
    database: Mapping[str, str], server: Path, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this module as a process of its own, on a database, with the identity in a device directory."""
    variables = {"DJANGO_SETTINGS_MODULE": "tests.settings", "AUTH_MESH_DIR": str(server), **environment(database)}
    argv = [sys.executable, "-m", "tests.trust.rollbacks", *words]
    return fork_server.run(argv, env={**os.environ, **variables, **(env or {})}, timeout=60)


def look(database: Mapping[str, str], server: Path, **options: Any) -> str:
    """Return ``ok`` if a new process accepts the list, otherwise the reason why it rejects the list."""
    done = new_process(database, server, "look", **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _look() -> str:
    from amesh_django.trust import current_list
    from authmesh.protocol.errors import AllowListIntegrityFailure, KeyStoreError

    try:
        current_list().snapshot()
    except AllowListIntegrityFailure as error:
        return error.reason
    except KeyStoreError as error:
        return f"{error.code}: {error}"
    return "ok"


def _die(where: str) -> None:
    from amesh_django.allow_list import DatabaseAllowList
    from amesh_django.trust.high_water import HighWater
    from authmesh.keystore.tpm.counter import TpmCounter
    from authmesh.protocol import DeviceEntry
    from tests.support.database_worker import WHEN, public_key

    def die(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "before noting":
        HighWater.remember = die  # type: ignore[method-assign]
    else:
        TpmCounter.advance_to = die  # type: ignore[method-assign]
    DatabaseAllowList().add(DeviceEntry.new(public_key("die", 1), "late", "target", added_at=WHEN))


if __name__ == "__main__":
    django.setup()
    if sys.argv[1] == "look":
        print(_look())
    else:
        _die(sys.argv[2])
