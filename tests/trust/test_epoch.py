"""The epoch: a list that the same key sealed in another database is not adopted, and lists of version 0.1 get an epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal, AuditEvent
from amesh_django.trust import current, current_list, rollback, triggers
from amesh_django.trust.sealing import Epoch, LogEnd
from authmesh.device import LocalDevice
from authmesh.protocol.errors import AllowListIntegrityFailure, AllowListUnavailable
from tests.trust.rollbacks import RECORD, Backup, look
from tests.trust.test_database_allow_list import sql
from tests.trust.test_rollback import entry, noted, reason, record

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


@pytest.fixture
def staging(devices: DatabaseAllowList, amesh_server: LocalDevice) -> Backup:
    """A list that this server sealed in another database, newer than the one of production that this process knows."""
    nothing = Backup()
    devices.add_all([entry(1), entry(2)])
    devices.revoke(entry(2).device_id)
    backup = Backup()
    nothing.restore()
    (amesh_server.path / RECORD).unlink()
    lifecycle.reset()
    devices.add(entry(3))
    current_list().snapshot()
    return backup


def epochs() -> tuple[str, list[str]]:
    seal = AllowListSeal.objects.get()
    return seal.epoch, seal.continues.split()


@pytest.mark.process
def test_the_list_of_another_database_is_refused_until_it_is_resealed(
    staging: Backup,
    devices: DatabaseAllowList,
    amesh_server: LocalDevice,
    default_database: dict[str, str],
    tmp_path: Path,
) -> None:
    production = epochs()[0]
    other = tmp_path / "other process"
    shutil.copytree(amesh_server.path, other)
    staging.restore()
    assert reason() == "other_epoch"  # in a process that runs
    assert look(default_database, amesh_server.path) == "other_epoch"  # in a process that starts
    with pytest.raises(AllowListIntegrityFailure, match="is another one"):
        devices.add(entry(4))
    found = epochs()[0]
    report = devices.verify()
    assert (report.ok, report.reason, report.is_old) == (False, "other_epoch", True)
    assert [line.split()[0] for line in report.trusted] == [entry(1).device_id]
    devices.reseal()
    assert epochs()[0] not in (production, found)
    assert epochs()[1] == [production, found]
    current_list().snapshot()
    assert look(default_database, amesh_server.path) == "ok"
    assert look(default_database, other) == "ok"  # it knew the list of production, which this one continues
    staging.restore()
    assert reason() == look(default_database, other) == "rolled_back"  # a list that was accepted, and is older now


def test_a_running_process_needs_no_file_to_refuse_it(
    devices: DatabaseAllowList, staging: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "database_name", lambda using: None)
    current.reset()
    current_list().snapshot()
    staging.restore()
    assert reason() == "other_epoch"
    current.reset()
    current_list().snapshot()  # nothing tells a new process


def test_the_epoch_is_under_the_seal(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    for change in ({"epoch": "ab" * 16}, {"epoch": ""}, {"continues": "ab" * 16}):
        before = AllowListSeal.objects.values().get()
        AllowListSeal.objects.update(**change)
        current.reset()
        assert reason() == "seal_mismatch"
        AllowListSeal.objects.update(**before)
    epoch = epochs()[0]
    devices.add(entry(2))
    assert epochs() == (epoch, [])
    for _ in range(9):
        devices.reseal()
    assert len(set(epochs()[1])) == 7
    assert epochs()[0] not in epochs()[1]


@pytest.mark.slow
def test_a_database_and_a_file_of_version_0_1_are_taken_over(
    devices: DatabaseAllowList, amesh_server: LocalDevice, default_database: dict[str, str], staging: Backup
) -> None:
    without_epoch(amesh_server)
    call_command("migrate", "amesh", "0001", verbosity=0)
    with connection.cursor() as cursor:
        columns = [
            column.name for column in connection.introspection.get_table_description(cursor, "amesh_allowlistseal")
        ]
    assert "epoch" not in columns
    lifecycle.reset()
    with pytest.raises(AllowListUnavailable, match="not migrated"):
        current_list().snapshot()
    call_command("migrate", "amesh", verbosity=0)
    assert triggers.installed("default")
    lifecycle.reset()
    assert devices.verify().ok
    assert devices.find(entry(3).public_key)
    assert "epoch" not in noted(amesh_server)
    sql("UPDATE amesh_device SET friendly_name = 'other'")
    assert "The audit log does not have all rows as they were sealed" in devices.verify().problems[-1]
    sql("UPDATE amesh_device SET friendly_name = %s", entry(3).friendly_name)
    devices.add(entry(4))
    assert list(AuditEvent.objects.order_by("seq").values_list("seq", "kind")) == [(1, "begin"), (2, "trust")]
    sql("UPDATE amesh_device SET friendly_name = 'other'")
    assert [problem.partition(":")[0] for problem in devices.verify().problems] == [f"{entry(4).device_id} (caller)"]
    sql("UPDATE amesh_device SET friendly_name = %s", entry(3).friendly_name)
    assert noted(amesh_server)["epoch"] == epochs()[0] != ""
    staging.restore()
    assert reason() == "other_epoch"


def without_epoch(server: LocalDevice) -> None:
    """Seal the list, and write the file of the marks, as version 0.1 did."""
    sealed = current_list()
    row = sealed.read_seal()
    assert row is not None
    old = sealed.make_seal(
        Epoch(""),
        LogEnd(),
        revision=row.revision,
        total=sealed.sealed_total(row),
        count=1,
        controllers=1,
        groups="",
        r=bytes(32),
    )
    AllowListSeal.objects.update(**old._asdict())
    place = sealed._place()
    assert place is not None
    document: dict[str, Any] = record(server)
    del document["hmac"]
    document["lists"] = {place[1]: {"revision": old.revision, "seal": old.hmac}}
    text = json.dumps({**document, "hmac": place[0]._mac(document)})
    (server.path / RECORD).write_text(text)
