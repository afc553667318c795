"""Rows that somebody with SQL damages so that Django cannot read them: nothing is accepted, and nothing that a person must do is stopped.

Every column of every table is damaged in each way that the database allows, one at a time.
"""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.db import DatabaseError, connection, models
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import placing
from amesh_django.audit.recording import record
from amesh_django.models import (
    AllowListSeal,
    AuditEvent,
    AuditSeal,
    Device,
    DeviceActivity,
    DeviceGroup,
    EnrollmentToken,
)
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.check import CHECK_PATH
from tests.admin.people import JOURNAL, LIST, logged_in, staff
from tests.commands.test_management import call
from tests.enrollment.machines import make

DEEP = "[" * 20000 + "]" * 20000
HIGHEST = 2**63 - 1
#: Tables under the seal of the list. If one of their rows is damaged, all requests are rejected.
SEALED = (Device, DeviceGroup, AllowListSeal)
TOKENS = "/admin/amesh/enrollmenttoken/"
#: Columns that hold JSON.
JSON = ("data", "permissions_json", "scopes_json", "groups_json")


def ways(field: models.Field[Any, Any], is_first: bool) -> list[str]:
    """Return SQL expressions that damage a column. SQLite stores any value in any column but the primary key.

    Args:
        is_first: False for one way, because a column of the same type was damaged in all ways.
    """
    is_free = connection.vendor == "sqlite" and not field.primary_key
    found = ["CAST(x'ff' AS TEXT)", "x'ff'"] if is_free else []
    if isinstance(field, models.DateTimeField):
        found += ["'infinity'", "'0001-01-01 00:00:00'", *(["5"] if is_free else ["'20000-01-01'"])]
    elif isinstance(field, models.TextField) and field.attname in JSON:
        found += [f"'{DEEP}'"]
    elif isinstance(field, models.IntegerField | models.ForeignKey) and not (
        field.primary_key and field.model in (AuditEvent, AuditSeal, AllowListSeal)
    ):
        found += [str(HIGHEST), *(["'zz'", "9e999"] if is_free else [])]
    found += ["NULL"] * field.null
    return found if is_first or field.attname in JSON else found[:1]


class World:
    """A server with two devices, a group, a token, and a log, whose database is restored after each damage.

    Attributes:
        good: the device that must be revoked, whatever was damaged.
        other: the device whose row and events are damaged.
    """

    #: Restores the tables.
    restore_tables: Callable[[], None]

    def __init__(self, server: LocalDevice) -> None:
        self.server = server
        self.good, self.other = EphemeralDevice("good"), EphemeralDevice("other")
        devices = DatabaseAllowList(by="alice")
        devices.add(self.other.entry(permissions={"shell": True}))
        devices.add(self.good.entry())
        devices.put_group("ops", ["orders:read"])
        make()
        DeviceActivity.objects.create(device=self.row(self.other), last_seen_at=timezone.now())
        record("export", by="bob", subject="one")
        placing.place_all(current_list())
        record("export", by="bob", subject="two")
        self.root = logged_in(staff("root", is_superuser=True))
        page = f"{LIST}{self.row(self.other).pk}/change/"
        token = f"{TOKENS}{EnrollmentToken.objects.get().pk}/change/"
        #: Pages of the admin that show a table.
        self.pages = {
            Device: [LIST, page],
            DeviceActivity: [LIST, page],
            DeviceGroup: [LIST],
            AllowListSeal: [LIST],
            AuditEvent: [JOURNAL, page],
            EnrollmentToken: [TOKENS, token],
        }

    def row(self, device: EphemeralDevice) -> Device:
        return Device.objects.get(device_id=device.identity.device_id)

    def restore(self) -> None:
        self.restore_tables()
        for name in ("list_revision.json", "revocations.json"):
            (self.server.path / name).unlink(missing_ok=True)
        lifecycle.reset()

    def damage(self, statement: str) -> bool:
        """Change a row outside Django, as nothing notices. Return False if the database does not allow that."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                changed = cursor.rowcount
                cursor.execute("UPDATE amesh_allowlistseal SET touched = 0 WHERE touched >= 0")
        except DatabaseError:
            return False
        return changed > 0

    def complaints(self, model: type[models.Model], where: str) -> Iterator[str]:
        """Yield what is wrong after a row of a table was damaged."""
        answer = AmeshClient(self.good, raise_request_exception=False).get(CHECK_PATH)
        is_good = answer.status_code == 200
        if not is_good and (model not in SEALED or (answer.status_code, answer.json()["error"]) != REJECTED):
            yield f"request {answer.status_code} {answer.content!r}"
        report = call("integrity")
        shown = report.out + report.err
        if is_good != (report.code == 0) and model in SEALED:
            yield f"integrity {shown}"
        if not is_good and model is Device and self.other.identity.device_id not in shown and "Row 1 of" not in shown:
            yield f"integrity names nothing {shown}"
        for words in [[], ["--json"], ["--ocsf"], ["--seal"]] if model is AuditEvent else []:
            if (done := call("audit", *words)).code:
                yield f"audit {words} {done.err}"
        is_bad = bool(call("audit", "--verify").code)  # a damaged seal may be a fault of the log, too
        if model is not AllowListSeal and is_bad != (model in (AuditEvent, AuditSeal)):
            yield "audit --verify"
        for page in self.pages.get(model, []):
            if (status := self.root.get(page).status_code) not in (200, 302):  # 302: there is no such row
                yield f"{page} {status}"
        revoked = call("revoke", self.good.identity.device_id, "--yes", "--reason", "stolen")
        if revoked.code or not self.row(self.good).is_revoked:
            yield f"revoke {revoked.err}"
        yield from self.resealed(model, where)

    def resealed(self, model: type[models.Model], where: str) -> Iterator[str]:
        """Reseal the list, as the report says, and yield what is wrong then."""
        resealed = call("integrity", "--reseal", "--yes")
        if resealed.code and model in (Device, DeviceGroup):
            DeviceActivity.objects.all().delete()
            self.damage(f"DELETE FROM {model._meta.db_table} WHERE {where} OR id = {HIGHEST}")  # noqa: S608
            resealed = call("integrity", "--reseal", "--yes")
        lifecycle.reset()
        if resealed.code:
            yield f"reseal {resealed.err}"
        elif not current_list().snapshot().by_key[self.good.identity.public_key].revoked:
            yield "trusted again"


REJECTED = (500, "allow_list_integrity_failure")
#: The rows that are damaged.
ROWS: list[tuple[type[models.Model], str]] = [
    (AuditEvent, "kind = 'trust' AND subject = 'other'"),
    (AuditEvent, "seq IS NULL AND kind = 'export'"),
    (AuditSeal, "id = 1"),
    (Device, "id = 1"),
    (DeviceGroup, "id > 0"),
    (AllowListSeal, "id = 1"),
    (EnrollmentToken, "id > 0"),
    (DeviceActivity, "device_id > 0"),
]


@contextmanager
def saved_sqlite() -> Iterator[Callable[[], None]]:
    with closing(sqlite3.connect(":memory:")) as saved, connection.cursor() as cursor:
        cursor.execute("PRAGMA foreign_keys = OFF")
        connection.connection.backup(saved)
        yield lambda: saved.backup(connection.connection)


@contextmanager
def saved_postgresql() -> Iterator[Callable[[], None]]:
    tables = [model._meta.db_table for model in apps.get_app_config("amesh").get_models()]
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("CREATE SCHEMA saved")
        for table in tables:
            cursor.execute(f"CREATE TABLE saved.{table} AS TABLE {table}")

    def restore() -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(tables)}")
            for table in tables:
                cursor.execute(f"INSERT INTO {table} SELECT * FROM saved.{table}")  # noqa: S608

    yield restore


@pytest.fixture
def world(default_database: Any, amesh_server: LocalDevice) -> Iterator[World]:
    found = World(amesh_server)
    with saved_sqlite() if connection.vendor == "sqlite" else saved_postgresql() as restore:
        found.restore_tables = restore
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("model", "where"), ROWS)
def test_no_damaged_row_stops_what_a_person_must_do(world: World, model: type[models.Model], where: str) -> None:
    found: dict[str, list[str]] = {}
    seen: set[type] = set()
    cases = 0
    for field in model._meta.concrete_fields:
        is_first = type(field) not in seen
        seen.add(type(field))
        for way in ways(field, is_first):
            world.restore()
            if "export" in where and field.column not in ("at", "data", "mac"):
                continue
            change = f"UPDATE {model._meta.db_table} SET {field.column} = {way} WHERE {where}"  # noqa: S608
            if not world.damage(change if way != "NULL" else f"{change} AND {field.column} IS NOT NULL"):
                continue
            cases += 1
            name = f"{field.column} = {way[:40]}"
            try:
                complaints = list(world.complaints(model, where))
            except Exception:
                complaints = [traceback.format_exc()[-1500:]]
            if complaints:
                found[name] = complaints
    assert cases
    for name, complaints in found.items():
        print(name, *complaints, sep="\n   ")
    assert not found
