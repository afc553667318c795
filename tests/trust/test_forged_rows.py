"""Rows that were changed outside Django in a way that the triggers do not report: they are not shown, handed out, or sealed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.enrollment import rotating
from amesh_django.models import AllowListSeal, Device, DeviceGroup
from amesh_django.trust import current, current_list, snapshot
from amesh_django.trust.verified import Snapshot
from authmesh.protocol import DeviceEntry
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.rotation import RotationRequest
from tests.support.database_worker import WHEN, public_key

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


def entry(number: int, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), "caller", role, added_at=WHEN)


def forge(*statements: str) -> None:
    """Change rows with SQL, and reset what the triggers have counted."""
    with connection.cursor() as cursor:
        for statement in (*statements, "UPDATE amesh_allowlistseal SET touched = 0"):
            cursor.execute(statement)


@pytest.fixture
def devices() -> DatabaseAllowList:
    """A list of two devices, which this process has verified."""
    found = DatabaseAllowList(by="alice")
    found.add(entry(1))
    found.add(entry(2, "target"))
    current_list().snapshot()
    return found


KEY = entry(2).public_key
#: A device asks to replace its key by one that the list has already.
ROTATION = RotationRequest(audience="", new_public_key=entry(1).public_key, issued_at=0, signature=b"")
NAME = "UPDATE amesh_device SET friendly_name = 'evil' WHERE role = 'controller'"
REVOKED = "UPDATE amesh_device SET revoked_at = added_at WHERE role = 'controller'"
GONE = "DELETE FROM amesh_device WHERE role = 'controller'"


@pytest.mark.parametrize("statement", [NAME, REVOKED, GONE])
@pytest.mark.parametrize(
    "use",
    [
        lambda devices: devices.read(),
        lambda devices: devices.find(entry(1).public_key),
        lambda devices: devices.get(entry(1).device_id),
        lambda devices: devices.set_permissions(entry(1).device_id, {"shell": True}),
        lambda devices: devices.add(entry(1)),
        lambda devices: devices.add(entry(3), replacing=entry(1).device_id),
        lambda devices: devices.map_user(entry(1).device_id, None),
        lambda devices: devices.add_all([entry(3), entry(1)]),
        lambda devices: current_list().change("rotation", lambda pending: rotating._replace(pending, ROTATION, KEY)),
    ],
    ids=["read", "find", "get", "set_permissions", "add", "replace", "map_user", "add_all", "rotate"],
)
def test_a_forged_row_is_neither_handed_out_nor_sealed(
    devices: DatabaseAllowList, statement: str, use: Callable[[DatabaseAllowList], object]
) -> None:
    before = AllowListSeal.objects.values().get()
    forge(statement)
    assert current_list().snapshot().by_key[entry(1).public_key].friendly_name == "caller"  # nothing was noticed yet
    with pytest.raises(AllowListIntegrityFailure) as caught:
        use(devices)
    assert caught.value.reason == "rows_mismatch"
    for _process in range(2):  # this one, and one that starts now
        with pytest.raises(AllowListIntegrityFailure):
            current_list().snapshot()
        current.reset()
    after = AllowListSeal.objects.values().get()
    assert after.pop("touched") == 1  # other processes verify all rows, too
    assert before.pop("touched") == 0
    assert before == after


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE amesh_device SET groups_json = '' WHERE role = 'controller'",
        "UPDATE amesh_device SET groups_json = '[\"shop\"]' WHERE role = 'controller'",
        GONE,
    ],
)
def test_a_member_that_is_hidden_does_not_outlive_its_group(devices: DatabaseAllowList, statement: str) -> None:
    """Its row, restored later, would have the scopes of a new group of that name."""
    devices.put_group("store", ["stock:read"])
    devices.grant([entry(1).device_id], Grant(groups=["store"]))
    current_list().snapshot()
    forge(statement)
    with pytest.raises(AllowListIntegrityFailure):
        devices.remove_group("store")
    assert DeviceGroup.objects.get().name == "store"


def test_revoked_members_leave_a_group_that_is_removed(devices: DatabaseAllowList) -> None:
    devices.put_group("store", ["stock:read"])
    devices.put_group("store-2", [])
    for one in (entry(1), entry(3)):
        devices.add(one)
        devices.grant([one.device_id], Grant(groups=["store", "store-2"]))
    devices.revoke(entry(1).device_id)
    assert {row.device_id for row in devices.remove_group("store")} == {entry(1).device_id, entry(3).device_id}
    assert [row.groups for row in Device.objects.exclude(role="target")] == [["store-2"]] * 2
    assert devices.verify().ok


def test_rows_that_others_change_meanwhile_are_no_forgery(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed, other, once = current_list(), DatabaseAllowList(by="bob"), [1]

    def read() -> list[Device]:
        if once:
            other.set_permissions(entry(1).device_id, {"n": once.pop()})
        return list(Device.objects.all())

    assert [row.permissions for row in sealed.verified(read)] == [{"n": 1}, {}]
    once[:] = [*range(9)]  # changed all the time: the last attempt locks writers out
    attempts = 0

    def busy() -> list[Device]:
        nonlocal attempts
        attempts += 1
        rows = list(Device.objects.all())
        if attempts <= 5:
            other.set_permissions(entry(1).device_id, {"n": once.pop()})
            rows = [*rows[:1], *rows[:0]]
            rows[0].permissions_json = "{}"
        return rows

    assert len(sealed.verified(busy)) == 2


def test_rows_that_are_read_with_writers_locked_out_do_not_wait_for_a_thread_that_verifies(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread may wait for the lock of the seal, which this one holds."""
    monkeypatch.setattr(snapshot, "_MAX_ATTEMPTS", 1)
    sealed, waited = current_list(), []

    def give_up() -> None:
        waited.append(True)
        sealed._lock.release()

    other_thread = threading.Timer(3, give_up)

    def read() -> list[Device]:
        if not other_thread.ident:
            devices.set_permissions(entry(1).device_id, {"n": 1})
            sealed._lock.acquire()  # as the other thread
            other_thread.start()
        return list(Device.objects.all())

    try:
        assert [row.permissions for row in sealed.verified(read)] == [{"n": 1}, {}]
        assert not waited
    finally:
        other_thread.cancel()


def test_a_change_knows_what_was_changed_since_the_snapshot(devices: DatabaseAllowList) -> None:
    """A change by another process, which this one has not read yet."""
    ours = current_list()
    current._lists.clear()
    DatabaseAllowList(by="other process").set_permissions(entry(1).device_id, {"a": 1})
    current._lists["default"] = ours
    devices.set_permissions(entry(1).device_id, {"b": 1})
    assert devices.get(entry(1).device_id).permissions == {"b": 1}
    assert devices.verify().ok
    current._lists.clear()
    DatabaseAllowList(by="other process").set_permissions(entry(1).device_id, {"c": 1})
    current._lists["default"] = ours
    forge(NAME)
    with pytest.raises(AllowListIntegrityFailure):
        devices.set_permissions(entry(1).device_id, {"d": 1})


def test_changes_one_after_the_other_do_not_verify_all_rows_each_time(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that changes the list and serves no requests."""
    built = []
    build = Snapshot.build
    monkeypatch.setattr(Snapshot, "build", lambda *arguments: built.append(1) or build(*arguments))
    current.reset()
    for number in range(4):
        devices.set_permissions(entry(1).device_id, {"n": number})
    assert len(built) == 1
