"""Database triggers that count changes of devices and groups in the seal row, so that a change outside Django is detected at once.

They are a hint, not the protection. Anyone who can disable them still cannot make a list that matches its seal; a process that has
verified the list keeps using what it verified. The triggers are created after every ``migrate``, because SQLite drops them when a
table is remade.
"""

from __future__ import annotations

import logging

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.models import AllowListSeal, Device, DeviceGroup

logger = logging.getLogger("amesh_django.allow_list")

#: Above this, ``touched`` begins again with 1: no value that somebody has written can make a change of a device fail.
MAX_TOUCHED = 2**62
_EVENTS = ("insert", "update", "delete")


#: The tables that are watched, each with the prefix of the names of its triggers.
_TABLES = {
    "amesh_django_touched": Device._meta.db_table,
    "amesh_django_touched_group": DeviceGroup._meta.db_table,
}


def _statements(connection: BaseDatabaseWrapper) -> list[str]:
    quote = connection.ops.quote_name
    seal, function = quote(AllowListSeal._meta.db_table), quote("amesh_django_touch")
    count = f"CASE WHEN touched < {MAX_TOUCHED} THEN touched + 1 ELSE 1 END"
    touch = f"UPDATE {seal} SET touched = {count} WHERE id = 1"  # noqa: S608 -- names of our own tables
    found: list[str] = []
    if connection.vendor == "postgresql":
        found.append(
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {touch}; RETURN NULL; END $$"
        )
    for prefix, name in _TABLES.items():
        table = quote(name)
        if connection.vendor == "sqlite":
            found += [
                f"CREATE TRIGGER IF NOT EXISTS {prefix}_{event} AFTER {event.upper()} ON {table} BEGIN {touch}; END"
                for event in _EVENTS
            ]
        if connection.vendor == "mysql":
            found += [f"DROP TRIGGER IF EXISTS {prefix}_{event}" for event in _EVENTS]
            found += [
                f"CREATE TRIGGER {prefix}_{event} AFTER {event.upper()} ON {table} FOR EACH ROW {touch}"
                for event in _EVENTS
            ]
        if connection.vendor == "postgresql":
            for event in (*_EVENTS, "truncate"):
                found.append(f"DROP TRIGGER IF EXISTS {prefix}_{event} ON {table}")
                found.append(
                    f"CREATE TRIGGER {prefix}_{event} AFTER {event.upper()} ON {table} FOR EACH STATEMENT "
                    f"EXECUTE FUNCTION {function}()"
                )
    return found


def install(using: str) -> bool:
    """Create the triggers. Return False, with a line in the log, if the database user may not (see ``amesh.W005``)."""
    connection = connections[using]
    statements = _statements(connection)
    if not statements or not {*_TABLES.values(), AllowListSeal._meta.db_table} <= set(
        connection.introspection.table_names()
    ):
        return False
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    except DatabaseError as error:
        logger.warning("The triggers that detect changes outside Django cannot be created in %s: %s", using, error)
        return False
    return True


def drop_function(using: str) -> None:
    """Drop the function that the triggers called, after the tables were dropped with their triggers."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"DROP FUNCTION IF EXISTS {connection.ops.quote_name('amesh_django_touch')}()")


_INSTALLED = {
    "sqlite": "SELECT COUNT(*) FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'amesh_django_touched_%%'",
    "postgresql": "SELECT COUNT(*) FROM pg_trigger WHERE tgname LIKE 'amesh_django_touched_%%' AND tgenabled <> 'D'",
    "mysql": "SELECT COUNT(*) FROM information_schema.triggers "
    "WHERE trigger_schema = DATABASE() AND trigger_name LIKE 'amesh_django_touched_%%'",
}


def installed(using: str) -> bool:
    """Return True if all triggers exist and are enabled."""
    connection = connections[using]
    query = _INSTALLED.get(connection.vendor)
    if query is None:
        return False
    with connection.cursor() as cursor:
        cursor.execute(query, [])
        events = len(_EVENTS) + (connection.vendor == "postgresql")  # and TRUNCATE
        return bool(cursor.fetchone()[0] >= events * len(_TABLES))
