"""Checks of the database with the allow list: its connections, its triggers, and the secret of its seal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import DatabaseError, connections

from amesh_django import conf
from amesh_django.models import AllowListSeal, Device
from amesh_django.trust import current_list, triggers
from amesh_django.trust.database import database
from amesh_django.trust.verified import other_secret
from authmesh.protocol.errors import AmeshError

from .directory import REJECTED


@register(Tags.security, deploy=True)
def check_connections(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the connections to PostgreSQL. Runs with ``check --deploy``, and does not connect.

    - ``amesh.W015``: each request makes a new one.
    """
    using = database()
    options = connections[using].settings_dict
    if connections[using].vendor != "postgresql" or options["CONN_MAX_AGE"] != 0 or options["OPTIONS"].get("pool"):
        return []
    return [
        Warning(
            f"Each request makes a new connection to the database {using!r}, because it has neither persistent connections nor a pool.",
            hint="For a WSGI server such as gunicorn, set CONN_MAX_AGE to 60 and CONN_HEALTH_CHECKS to True in DATABASES. For an ASGI "
            "server, leave CONN_MAX_AGE at 0, and set OPTIONS['pool'].",
            id="amesh.W015",
        )
    ]


@register(Tags.database)
def check_triggers(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check the triggers of the database. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W005``: the triggers that report changes made outside Django are missing.
    """
    using = database()
    if using not in (databases or ()):
        return []
    try:
        tables = set(connections[using].introspection.table_names())
        missing = {Device._meta.db_table, AllowListSeal._meta.db_table} <= tables and not triggers.installed(using)
    except DatabaseError:
        return []
    if not missing:
        return []
    return [
        Warning(
            f"The database {using!r} does not have the triggers that report at once when a device is changed outside Django. "
            "Without them, such a change has no effect, and is found only when a process starts or amesh_integrity runs.",
            hint="Grant the database user the privilege TRIGGER (for MySQL with a binary log, set log_bin_trust_function_creators), "
            "then run manage.py migrate.",
            id="amesh.W005",
        )
    ]


@register(Tags.database)
def check_seal_secret(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Check whether this server has the secret of the seal. Runs with ``check --database`` and ``migrate``.

    - ``amesh.W016``: the allow list was sealed with another secret.
    """
    using = database()
    if using not in (databases or ()) or conf.problems():
        return []
    try:
        sealed = current_list(using)
        row = sealed.read_seal()
        if row is None or sealed.is_genuine(row):
            return []
    except (AmeshError, DatabaseError):  # reported by amesh.W003 and amesh.W006, or not migrated
        return []
    return [
        Warning(
            f"The allow list in the database {using!r} was sealed with another secret than this server has: another host that uses "
            f"the database sealed it, or this server has another identity than before. {REJECTED}",
            hint=f"{other_secret()} If this is the only host, restore the right device directory (AMESH['DIR']) or seal key file.",
            id="amesh.W016",
        )
    ]
