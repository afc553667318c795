"""Revoking in a list that is rejected: it works, and trusts nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal, Device
from amesh_django.trust import current, current_list
from authmesh.device import LocalDevice
from authmesh.protocol import DeviceEntry
from authmesh.protocol.errors import AllowListIntegrityFailure, DeviceNotFound
from tests.support.database_worker import WHEN, public_key
from tests.trust.rollbacks import Backup
from tests.trust.test_clocks import rotate

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")

STOLEN, OTHER = 1, 2
EXTRA = "am_IIA0Q7957JSf_rTI"
ADDED = (
    "INSERT INTO amesh_device (device_id, public_key, friendly_name, role, permissions_json, added_at, added_by, "
    "revoked_by, revoke_reason, revision) SELECT 'am_IIA0Q7957JSf_rTI', 'AhArY3/SR3fscZQyR5pgCoc6M6oKvRqJWttr1w8CJfsE', 'evil', "
    "'controller', '{}', added_at, 'manual', '', '', 1 FROM amesh_device WHERE role = 'target'"
)


def entry(number: int, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), "caller", role, added_at=WHEN)


def forge(*statements: str, touched: bool = False) -> None:
    """Change rows with SQL and, unless *touched*, reset what the triggers have counted."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        if not touched:
            cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")


def reason() -> str:
    try:
        current_list().snapshot()
    except AllowListIntegrityFailure as error:
        return error.reason
    return "ok"


@pytest.fixture
def devices() -> DatabaseAllowList:
    found = DatabaseAllowList(by="alice")
    found.add(entry(STOLEN))
    found.add(entry(OTHER, "target"))
    current_list().snapshot()
    return found


THE_OTHER = "UPDATE amesh_device SET friendly_name = 'evil' WHERE role = 'target'"
ITSELF = "UPDATE amesh_device SET revoked_at = added_at, friendly_name = 'evil' WHERE role = 'controller'"
GONE = "DELETE FROM amesh_device WHERE role = 'controller'"
ITS_ID = "UPDATE amesh_device SET device_id = 'am_IIA0Q7957JSf_rTI' WHERE role = 'controller'"


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(("statement", "heals"), [(THE_OTHER, False), (ITSELF, True), (GONE, True), (ITS_ID, True)])
def test_a_device_is_revoked_in_a_list_that_does_not_match(
    devices: DatabaseAllowList, statement: str, heals: bool, touched: bool
) -> None:
    worker = current_list()  # a process that goes on with what it verified
    forge(statement, touched=touched)
    current._lists.clear()
    assert entry(STOLEN).public_key in [found.public_key for found in devices.revocable()]
    assert devices.revoke(entry(STOLEN).device_id, reason="stolen").friendly_name == "caller"
    row = Device.objects.get(device_id=entry(STOLEN).device_id)
    assert (row.is_revoked, row.friendly_name, row.revoke_reason) == (True, "caller", "stolen")
    for process in (worker, current_list()):
        current._lists["default"] = process
        assert reason() == ("ok" if heals else "rows_mismatch")
    current.reset()
    if heals:
        assert devices.trouble is None
        assert devices.verify().ok
        assert current_list().snapshot().by_key[entry(STOLEN).public_key].revoked
        assert devices.count("controller") == 0
    else:
        assert devices.trouble is not None
        assert "do not match their seal" in devices.trouble.message
        assert list(devices.verify().problems) == [
            f"{entry(OTHER).device_id} (caller): friendly_name is 'evil', but was sealed as 'caller'."
        ]
    with pytest.raises(DeviceNotFound):
        devices.revoke(entry(STOLEN).device_id)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM amesh_allowlistseal",
        "UPDATE amesh_allowlistseal SET hmac = digest",
        "DELETE FROM amesh_auditevent",
    ],
)
def test_a_device_is_revoked_without_seal_or_log(devices: DatabaseAllowList, statement: str) -> None:
    worker = current_list()
    forge(statement, THE_OTHER, touched=True)
    devices.revoke(entry(STOLEN).device_id)
    assert Device.objects.get(device_id=entry(STOLEN).device_id).is_revoked
    for process in (worker, None):
        current._lists.clear()
        if process is not None:
            current._lists["default"] = process
        assert reason() != "ok"
    devices.reseal()
    assert current_list().snapshot().by_key[entry(STOLEN).public_key].revoked


def test_an_old_list_does_not_become_the_newest(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    backup = Backup()
    devices.revoke(entry(OTHER).device_id)
    current_list().snapshot()
    backup.restore()
    for _change in range(2):
        devices.revoke(entry(STOLEN if not _change else OTHER).device_id)
        assert devices.trouble is not None
        assert AllowListSeal.objects.get().revision == 2
        for _process in range(2):
            assert reason() == "rolled_back"
            current.reset()
    devices.reseal()
    assert all(known.revoked for known in current_list().snapshot().by_key.values())


def test_who_was_added_outside_django_is_revoked(devices: DatabaseAllowList) -> None:
    forge(ADDED)
    devices.revoke(EXTRA)
    assert Device.objects.get(device_id=EXTRA).is_revoked
    current.reset()
    assert reason() == "rows_mismatch"
    with pytest.raises(DeviceNotFound):
        devices.revoke("am_nobody")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_revokes_and_says_what_else_is_wrong(devices: DatabaseAllowList, as_json: bool) -> None:
    forge(THE_OTHER)
    current._lists.clear()
    out, err = io.StringIO(), io.StringIO()
    call_command("amesh_revoke", entry(STOLEN).device_id, yes=True, json=as_json, stdout=out, stderr=err)
    assert Device.objects.get(device_id=entry(STOLEN).device_id).is_revoked
    assert "manage.py amesh_integrity" in err.getvalue()
    if as_json:
        assert "do not match their seal" in json.loads(out.getvalue())["problem"]
    else:
        assert "Revoked: " in out.getvalue()
        assert "do not match their seal" in " ".join(err.getvalue().split())


DAMAGED = "UPDATE amesh_device SET device_id = 'x', public_key = 'x', role = 'x' WHERE role = 'target'"


@pytest.mark.parametrize("statement", [THE_OTHER, ITSELF, GONE, DAMAGED])
def test_the_command_knows_the_name_that_was_sealed(statement: str) -> None:
    devices = DatabaseAllowList(by="alice")
    devices.add(dataclasses.replace(entry(STOLEN), friendly_name="Anna's laptop"))
    devices.add(entry(OTHER, "target"))
    forge(statement)
    current._lists.clear()
    with pytest.raises(CommandError, match="No trusted device has the name 'nobody'"):
        call_command("amesh_revoke", "nobody", yes=True, stdout=io.StringIO(), stderr=io.StringIO())
    call_command("amesh_revoke", "Anna's laptop", yes=True, stdout=io.StringIO(), stderr=io.StringIO())
    assert Device.objects.get(device_id=entry(STOLEN).device_id).is_revoked


def test_several_are_revoked_or_none(devices: DatabaseAllowList) -> None:
    forge(THE_OTHER)
    current._lists.clear()
    with pytest.raises(DeviceNotFound):
        devices.revoke_all([entry(STOLEN).device_id, "am_nobody"])
    assert not Device.objects.exclude(revoked_at=None).exists()
    names = [entry(OTHER).device_id, entry(STOLEN).device_id]
    assert [found.device_id for found in devices.revoke_all(names)] == names
    assert not Device.objects.filter(revoked_at=None).exists()


@pytest.mark.parametrize("column", ["public_key", "added_at", "permissions_json", "role", "user_id", "revision"])
def test_a_damaged_row_is_revoked(devices: DatabaseAllowList, column: str) -> None:
    if connection.vendor == "postgresql" and column in ("added_at", "user_id", "revision"):
        return  # the column holds nothing else
    forge(*(["PRAGMA foreign_keys = OFF"] if connection.vendor == "sqlite" else []), ADDED)
    forge(f"UPDATE amesh_device SET {column} = 'damaged' WHERE device_id = '{EXTRA}'")  # noqa: S608
    current._lists.clear()
    call_command("amesh_revoke", EXTRA, yes=True, stdout=io.StringIO(), stderr=io.StringIO())
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM amesh_device WHERE device_id = %s AND revoked_at IS NOT NULL", [EXTRA])
        assert cursor.fetchone() == (1,)


LATER = "UPDATE amesh_device SET revoked_at = '2099-01-01 00:00:00', revoked_by = 'am_x', revoke_reason = 'rotated'"


def test_a_row_that_says_that_it_will_be_revoked_is_revoked_now(devices: DatabaseAllowList) -> None:
    forge(f"{LATER} WHERE role = 'controller'", "DELETE FROM amesh_auditevent")
    current._lists.clear()
    devices.revoke(entry(STOLEN).device_id)
    devices.reseal()
    assert current_list().snapshot().by_key[entry(STOLEN).public_key].revoked


def test_a_row_that_is_nested_too_deeply_is_a_row_that_was_changed(devices: DatabaseAllowList) -> None:
    deep = '{"scopes":' + "[" * 20000 + "]" * 20000 + "}"
    forge("UPDATE amesh_device SET permissions_json = 'X' WHERE role = 'controller'".replace("X", deep))
    current._lists.clear()
    assert reason() == "rows_mismatch"
    devices.revoke(entry(STOLEN).device_id)
    assert Device.objects.get(device_id=entry(STOLEN).device_id).is_revoked


NAMED = "UPDATE amesh_device SET friendly_name = 'evil' WHERE role = 'target'"
OVERLAP_HIDDEN = "UPDATE amesh_device SET revoke_reason = '' WHERE revoke_reason = 'rotated'"
OVERLAP_GONE = "DELETE FROM amesh_device WHERE revoke_reason = 'rotated'"


@pytest.mark.parametrize(
    ("by", "statement"),
    [("new", None), ("new", NAMED), ("new", OVERLAP_HIDDEN), ("new", OVERLAP_GONE), ("old", None), ("old", NAMED)],
)
def test_keys_that_were_replaced_do_not_outlive_the_new_one(
    devices: DatabaseAllowList, statement: str | None, by: str
) -> None:
    """The key of the device was replaced twice within minutes. The new one does not outlive the old one either."""
    for number in (3, 4):
        devices.add(entry(number))
    rotate(STOLEN, 3)
    rotate(3, 4)
    assert not current_list().snapshot().by_key[entry(STOLEN).public_key].revoked
    worker = current_list()
    if statement is not None:
        forge(statement)
    revoked = [STOLEN] if by == "old" else [4]
    words = [entry(number).device_id for number in revoked]
    call_command("amesh_revoke", *words, yes=True, stdout=io.StringIO(), stderr=io.StringIO())
    current._lists["default"] = worker
    if reason() != "ok":
        devices.reseal()
    gone = {number for number in (STOLEN, 3, 4) if current_list().snapshot().by_key[entry(number).public_key].revoked}
    assert gone == {STOLEN, 3, 4}


@pytest.mark.parametrize("count", [2**63 - 1, -(2**63), -1])
def test_no_count_of_changes_prevents_a_revocation(devices: DatabaseAllowList, count: int) -> None:
    for number in (STOLEN, OTHER):
        AllowListSeal.objects.update(touched=count)
        devices.revoke(entry(number).device_id)
        forge(THE_OTHER, touched=True)
    assert not Device.objects.filter(revoked_at=None).exists()


def test_a_revocation_in_an_old_list_counts_in_transactions_too(
    devices: DatabaseAllowList, amesh_server: LocalDevice
) -> None:
    """With ATOMIC_REQUESTS, each request is a transaction. It may see an older list only while the newer one is there."""
    backup = Backup()
    devices.revoke(entry(OTHER).device_id)
    worker = current_list()
    worker.snapshot()
    backup.restore()
    for revoked in (False, True):
        current._lists["default"] = worker
        with transaction.atomic():
            assert reason() == "rolled_back"
        if not revoked:
            current._lists.clear()
            devices.revoke(entry(STOLEN).device_id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE amesh_auditevent SET revision = 9223372036854775807",
        "UPDATE amesh_allowlistseal SET revision = 9223372036854775807",
        "UPDATE amesh_auditevent SET revision = 'damaged', mac = x'00'",
    ],
)
def test_no_forged_revision_prevents_a_revocation_or_a_reseal(devices: DatabaseAllowList, statement: str) -> None:
    if connection.vendor == "postgresql" and "damaged" in statement:
        return  # the column holds nothing else
    forge(statement, THE_OTHER, "UPDATE amesh_allowlistseal SET hmac = digest", touched=True)
    current._lists.clear()
    devices.revoke(entry(STOLEN).device_id)
    assert devices.verify().problems
    devices.reseal()
    assert current_list().snapshot().by_key[entry(STOLEN).public_key].revoked
