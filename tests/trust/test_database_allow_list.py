"""The sealed list in the database: changes, tampering, snapshots, transactions; on SQLite and PostgreSQL."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, transaction
from django.db.models import ProtectedError
from django.test.utils import CaptureQueriesContext

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal, AuditEvent, Device, SealedModelError
from amesh_django.trust import SealedList, current, current_list, snapshot, triggers
from amesh_django.trust.locking import ConcurrentChange
from amesh_django.trust.verified import Snapshot
from authmesh.device import LocalDevice
from authmesh.protocol import DeviceEntry, device_id
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, ControllerLimitReached, DeviceNotFound
from tests.support.database_worker import WHEN, public_key

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


def entry(number: int, role: Any = "controller", name: str = "caller", **more: Any) -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), name, role, added_at=WHEN, **more)


def sql(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def reason_of_failure() -> str:
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    return caught.value.reason


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


@pytest.mark.process
def test_an_empty_list_knows_nobody(devices: DatabaseAllowList) -> None:
    assert devices.read() == []
    assert devices.count("controller") == devices.count("target") == 0
    assert devices.find(public_key("test", 1)) is None
    assert devices.verify().ok


@pytest.mark.parametrize("in_transaction", [False, True])
def test_the_first_device_may_come_between_two_reads(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch, in_transaction: bool
) -> None:
    """The seal was read when there was none yet, the rows a moment later. The list is not broken."""
    true, stale = SealedList.read_seal, [None]
    devices.add(entry(1))
    current.reset()
    monkeypatch.setattr(SealedList, "read_seal", lambda self: stale.pop() if stale else true(self))
    monkeypatch.setattr(snapshot, "reads_for_itself", lambda connection: in_transaction)
    assert entry(1).public_key in current_list().snapshot().by_key
    assert not stale


def test_another_thread_may_go_on_between_two_reads(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes the very snapshot with which this thread was about to compare the seal that it has just read."""
    devices.add(entry(1))
    current_list().snapshot()
    true = SealedList.read_seal

    def read(self: SealedList) -> Any:
        row = true(self)
        monkeypatch.undo()
        devices.add(entry(2))
        current_list().snapshot()
        return row

    monkeypatch.setattr(SealedList, "read_seal", read)
    assert entry(2).public_key in current_list().snapshot().by_key


def test_what_is_added_is_found(devices: DatabaseAllowList) -> None:
    one, two = entry(1, permissions={"shell": True}), entry(2, "target", "größer \u2713")
    devices.add(one)
    devices.add(two)
    assert devices.read() == [one, two]
    assert devices.find(one.public_key) == one
    assert devices.get(two.device_id) == two
    assert (devices.count("controller"), devices.count("target")) == (1, 1)
    assert devices.verify().ok


def test_a_known_device_is_refreshed(devices: DatabaseAllowList) -> None:
    devices.add(entry(1, permissions={"shell": True}))
    devices.add(entry(1, "target", "new name"))
    assert devices.read() == [entry(1, "target", "new name")]
    assert devices.verify().ok


def test_a_revoked_device_keeps_its_row(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    devices.revoke(entry(1).device_id, reason="lost laptop", by="bob")
    assert devices.read() == []
    assert devices.count("controller") == 0
    row = Device.objects.get()
    assert (row.is_revoked, row.revoked_by, row.revoke_reason) == (True, "bob", "lost laptop")
    assert current_list().snapshot().by_key[entry(1).public_key].revoked
    with pytest.raises(DeviceNotFound):
        devices.revoke(entry(1).device_id)
    assert [event.kind for event in AuditEvent.objects.all()] == ["revoke", "trust"]


def test_only_a_revoked_device_is_purged(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    devices.add(entry(2))
    with pytest.raises(AllowListError, match="still trusted"):
        devices.purge(entry(1).device_id)
    devices.revoke(entry(1).device_id)
    devices.purge(entry(1).device_id)
    assert [row.device_id for row in Device.objects.all()] == [entry(2).device_id]
    assert list(current_list().snapshot().by_key) == [entry(2).public_key]


def test_the_limit_of_controllers_holds(devices: DatabaseAllowList, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "MAX_CONTROLLERS": 1}
    devices.add(entry(1))
    devices.add(entry(1, name="again"))
    devices.add(entry(2, "target"))
    with pytest.raises(ControllerLimitReached):
        devices.add(entry(3))
    with pytest.raises(ControllerLimitReached):
        devices.add(entry(2, "controller"))
    with pytest.raises(ControllerLimitReached):
        devices.add_all([entry(4), entry(5)])
    assert devices.read() == [entry(1, name="again"), entry(2, "target")]
    devices.replace(entry(1).device_id, entry(3))
    assert devices.read() == [entry(2, "target"), entry(3)]
    assert Device.objects.get(device_id=entry(1).device_id).is_revoked


def test_many_are_added_at_once_and_none_is_revived(devices: DatabaseAllowList) -> None:
    devices.add(entry(0))
    devices.add(entry(1))
    devices.revoke(entry(1).device_id)
    skipped = devices.add_all([entry(n, "target") for n in range(1200)])
    assert [e.device_id for e in skipped] == [entry(1).device_id]
    assert devices.count("target") == 1199
    assert devices.verify().ok
    assert AllowListSeal.objects.get().count == 1200


def test_a_database_that_returns_no_keys_of_many_rows(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL returns none; the keys are sealed too."""
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    devices.add(entry(1))
    devices.add_all([entry(n) for n in range(2, 9)])
    assert devices.verify().ok
    devices.revoke(entry(5).device_id)
    assert devices.verify().ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE amesh_device SET role = 'controller' WHERE role = 'target'",
        "UPDATE amesh_device SET friendly_name = 'evil' WHERE role = 'target'",
        "UPDATE amesh_device SET permissions_json = '{\"shell\":true}' WHERE role = 'target'",
        "UPDATE amesh_device SET revoked_at = NULL WHERE revoked_at IS NOT NULL",
        "UPDATE amesh_device SET revoked_by = 'x' WHERE revoked_at IS NOT NULL",
        "UPDATE amesh_device SET added_by = 'handshake' WHERE role = 'target'",
        "UPDATE amesh_device SET user_id = (SELECT MIN(id) FROM auth_user)",
        "UPDATE amesh_device SET revision = revision + 1",
        "DELETE FROM amesh_device WHERE role = 'target'",
        "INSERT INTO amesh_device (device_id, public_key, friendly_name, role, permissions_json, added_at, added_by, "
        "revoked_by, revoke_reason, revision) SELECT 'am_IIA0Q7957JSf_rTI', 'AhArY3/SR3fscZQyR5pgCoc6M6oKvRqJWttr1w8CJfsE', 'evil', "
        "'controller', '{}', added_at, 'manual', '', '', 1 FROM amesh_device WHERE role = 'target'",
        "UPDATE amesh_allowlistseal SET revision = revision + 1",
        "UPDATE amesh_allowlistseal SET count = count + 1",
        "UPDATE amesh_allowlistseal SET controllers = 0",
        "UPDATE amesh_allowlistseal SET hmac = digest",
        "UPDATE amesh_allowlistseal SET digest = mask",
        "DELETE FROM amesh_allowlistseal",
    ],
)
def test_any_change_outside_django_is_detected_by_all(
    devices: DatabaseAllowList, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    get_user_model().objects.create_user("root")
    devices.add(entry(1))
    devices.add(entry(2, "target"))
    devices.add(entry(3))
    devices.revoke(entry(3).device_id)
    current_list().snapshot()
    sql(statement)
    assert reason_of_failure() in ("rows_mismatch", "seal_mismatch", "seal_missing", "rolled_back")
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    current.reset()  # as a process that starts now
    reason_of_failure()
    report = devices.verify()
    assert not report.ok
    before = list(Device.objects.values())
    for change in (
        lambda: devices.add(entry(9)),
        lambda: devices.set_permissions(entry(1).device_id, {}),
    ):
        with pytest.raises(AllowListIntegrityFailure):
            change()
    assert list(Device.objects.values()) == before
    devices.reseal(by="carol")
    assert devices.verify().ok
    current_list().snapshot()
    devices.add(entry(4))
    assert devices.find(entry(4).public_key)


def test_the_report_names_what_differs(devices: DatabaseAllowList) -> None:
    devices.add(entry(1, name="one"))
    devices.add(entry(2, name="two"))
    devices.add(entry(3, name="three"))
    sql("UPDATE amesh_device SET friendly_name = 'evil' WHERE friendly_name = 'one'")
    sql("DELETE FROM amesh_device WHERE friendly_name = 'two'")
    assert devices.verify().problems == [
        f"{entry(1).device_id} (one): friendly_name is 'evil', but was sealed as 'one'.",
        f"{entry(2).device_id}: removed outside Django (role 'controller', name 'two').",
    ]


@pytest.mark.parametrize(
    ("damage", "fix"),
    [
        ("UPDATE amesh_device SET public_key = x'00'", "DELETE FROM amesh_device"),
        ("UPDATE amesh_device SET added_at = '2026-99-99 00:00:00'", "DELETE FROM amesh_device"),
        ("UPDATE amesh_device SET revision = 'x'", "DELETE FROM amesh_device"),
        ("UPDATE amesh_allowlistseal SET revision = 'x'", ""),
        ("UPDATE amesh_allowlistseal SET hmac = x'ff'", ""),
        ("UPDATE amesh_allowlistseal SET touched = 'x'", ""),
    ],
)
def test_what_sqlite_lets_into_a_column_is_a_failure_and_no_traceback(
    devices: DatabaseAllowList, damage: str, fix: str
) -> None:
    if connection.vendor != "sqlite":
        return  # PostgreSQL keeps it out
    devices.add(entry(1))
    current_list().snapshot()
    sql(damage)
    for _ in range(2):
        assert reason_of_failure() in ("rows_mismatch", "seal_mismatch")
        current.reset()
    assert not devices.verify().ok
    if fix:
        with pytest.raises(AllowListError, match="SQL"):
            devices.reseal()
        sql(fix)
    devices.reseal()
    assert devices.verify().ok
    current_list().snapshot()


@pytest.mark.parametrize("what", ["verify", "reseal"])
def test_what_gets_in_the_way_of_a_check_is_tried_again(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A lock on SQLite, a serialization failure on PostgreSQL in REPEATABLE READ, a seal that another process made."""
    devices.add(entry(1))
    trouble, true = [OperationalError("database is locked"), ConcurrentChange()], SealedList._lock_seal

    def lock(self: SealedList) -> Any:
        if trouble:
            raise trouble.pop()
        return true(self)

    monkeypatch.setattr(SealedList, "_lock_seal", lock)
    getattr(devices, what)()
    assert not trouble
    assert devices.verify().ok


def test_a_row_restored_to_an_older_state_is_detected(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    old = Device.objects.values().get()
    devices.revoke(entry(1).device_id)
    current_list().snapshot()
    sql(
        "UPDATE amesh_device SET revoked_at = NULL, revoked_by = '', revoke_reason = '', revision = %s", old["revision"]
    )
    assert reason_of_failure() == "rows_mismatch"


def test_a_change_that_is_undone_by_hand_heals(devices: DatabaseAllowList) -> None:
    devices.add(entry(1, name="one"))
    current_list().snapshot()
    sql("UPDATE amesh_device SET friendly_name = 'evil'")
    reason_of_failure()
    sql("UPDATE amesh_device SET friendly_name = 'one'")
    assert current_list().snapshot().by_key[entry(1).public_key].friendly_name == "one"


def test_without_triggers_an_edit_takes_no_effect_and_a_new_process_refuses(devices: DatabaseAllowList) -> None:
    devices.add(entry(1, "target"))
    current_list().snapshot()
    on = " ON amesh_device" if connection.vendor == "postgresql" else ""
    sql(f"DROP TRIGGER amesh_django_touched_update{on}")
    assert not triggers.installed("default")
    sql("UPDATE amesh_device SET role = 'controller'")
    assert current_list().snapshot().by_key[entry(1).public_key].role == "target"
    current.reset()
    assert reason_of_failure() == "rows_mismatch"
    triggers.install("default")
    assert triggers.installed("default")


def test_an_older_list_with_a_good_seal_is_refused(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    rows, seals = list(Device.objects.values()), list(AllowListSeal.objects.values())
    devices.revoke(entry(1).device_id)
    current_list().snapshot()
    sql("DELETE FROM amesh_deviceactivity")
    row, seal = rows[0], seals[0]
    sql("UPDATE amesh_device SET revoked_at = NULL, revoked_by = '', revision = %s", row["revision"])
    sql("UPDATE amesh_device SET revoke_reason = ''")
    names = [name for name in seal if name != "id"]
    sql(f"UPDATE amesh_allowlistseal SET {', '.join(f'{n} = %s' for n in names)}", *(seal[n] for n in names))  # noqa: S608
    assert reason_of_failure() == "rolled_back"
    devices.reseal()
    assert not current_list().snapshot().by_key[entry(1).public_key].revoked


def test_a_list_restored_and_changed_to_the_same_revision_is_rejected(
    devices: DatabaseAllowList, amesh_server: LocalDevice
) -> None:
    """Otherwise a revoked device would come back with the next change after a backup was restored."""
    devices.add(entry(1))
    row, seal = Device.objects.values().get(), AllowListSeal.objects.values().get()
    devices.revoke(entry(1).device_id)
    assert current_list().snapshot().by_key[entry(1).public_key].revoked
    sql("UPDATE amesh_device SET revoked_at = NULL, revoke_reason = ''")
    sql("UPDATE amesh_device SET revoked_by = '', revision = %s", row["revision"])
    names = [name for name in seal if name != "id"]
    sql(f"UPDATE amesh_allowlistseal SET {', '.join(f'{n} = %s' for n in names)}", *(seal[n] for n in names))  # noqa: S608
    with pytest.raises(AllowListIntegrityFailure, match="older"):
        devices.add(entry(2))
    (amesh_server.path / "list_revision.json").unlink()  # as on another host that has not seen it
    devices.add(entry(2))
    assert AllowListSeal.objects.get().revision == seal["revision"] + 1
    assert reason_of_failure() == "rolled_back"
    devices.revoke(entry(1).device_id)
    devices.reseal()
    assert current_list().snapshot().by_key[entry(1).public_key].revoked


def test_one_small_read_for_a_request_however_many_devices(devices: DatabaseAllowList) -> None:
    devices.add_all([entry(n) for n in range(50)])
    current_list().snapshot()
    with CaptureQueriesContext(connection) as queries:
        current_list().snapshot()
    assert [q["sql"].split(" FROM ")[1].split()[0].strip('"`') for q in queries.captured_queries] == [
        "amesh_allowlistseal"
    ]
    devices.set_permissions(entry(7).device_id, {"shell": True})
    with CaptureQueriesContext(connection) as queries:
        current_list().snapshot()
    assert len(queries) == 2


def test_a_rolled_back_change_leaves_no_trace(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    current_list().snapshot()
    with pytest.raises(RuntimeError), transaction.atomic():
        devices.revoke(entry(1).device_id)
        devices.add(entry(2))
        assert current_list().snapshot().by_key[entry(1).public_key].revoked
        assert entry(2).public_key in current_list().snapshot().by_key
        raise RuntimeError
    assert not current_list().snapshot().by_key[entry(1).public_key].revoked
    assert entry(2).public_key not in current_list().snapshot().by_key


def test_a_function_that_was_rolled_back_once_is_believed_again(devices: DatabaseAllowList) -> None:
    """As a decorator, `atomic` is the same object at each call."""

    @transaction.atomic
    def view(fails: bool) -> Snapshot:
        if fails:
            devices.add(entry(1))
            raise RuntimeError
        return current_list().snapshot()

    devices.add(entry(2))
    with pytest.raises(RuntimeError):
        view(fails=True)
    assert view(fails=False) is current_list().snapshot()


def test_a_committed_change_holds(devices: DatabaseAllowList) -> None:
    with transaction.atomic():
        devices.add(entry(1))
        assert entry(1).public_key in current_list().snapshot().by_key
    assert entry(1).public_key in current_list().snapshot().by_key


def test_devices_change_through_the_list_only(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    row = Device.objects.get()
    user = get_user_model().objects.create_user("bob")
    for attempt in (
        row.save,
        row.delete,
        Device.objects.all().delete,
        lambda: Device.objects.update(role="controller"),
        lambda: Device.objects.create(device_id="x"),
        lambda: Device.objects.bulk_create([Device()]),
        lambda: Device.objects.bulk_update([row], ["role"]),
        lambda: Device.objects.get_or_create(device_id="x"),
        lambda: Device.objects.update_or_create(device_id="x"),
        lambda: user.amesh_devices.add(row),
        lambda: user.amesh_devices.create(device_id="x"),
    ):
        with pytest.raises(SealedModelError, match="DatabaseAllowList"):
            attempt()
    assert devices.verify().ok


def test_a_mapped_user_is_sealed_and_cant_be_deleted(devices: DatabaseAllowList) -> None:
    user = get_user_model().objects.create_user("bob")
    devices.add(entry(1))
    devices.map_user(entry(1).device_id, user)
    assert current_list().snapshot().by_key[entry(1).public_key].user_id == user.pk
    with pytest.raises(ProtectedError):
        user.delete()
    devices.add(entry(1, name="refreshed"))
    assert Device.objects.get().user == user
    devices.map_user(entry(1).device_id, None)
    user.delete()
    assert devices.verify().ok


def test_the_seal_of_another_identity_is_refused(
    devices: DatabaseAllowList, amesh_server: LocalDevice, tmp_path: Any
) -> None:
    from amesh_django.test.devices import EphemeralDevice

    devices.add(entry(1))
    other = tmp_path / "other"
    EphemeralDevice("other").write(other)
    from django.test import override_settings

    with override_settings(AMESH={"DIR": str(other)}):
        lifecycle.reset()
        assert reason_of_failure() == "seal_mismatch"
        assert "made with this server's key" in DatabaseAllowList().verify().problems[0]
    lifecycle.reset()
    current_list().snapshot()


def test_hosts_share_a_secret_by_file(tmp_path: Any) -> None:
    from django.test import override_settings

    from amesh_django.test.devices import EphemeralDevice
    from authmesh.protocol.errors import KeyStoreError

    key = tmp_path / "seal.key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    for name in ("one", "two"):
        EphemeralDevice(name).write(tmp_path / name, max_controllers=5)
        with override_settings(AMESH={"DIR": str(tmp_path / name), "SEAL_KEY_FILE": str(key)}):
            lifecycle.reset()
            DatabaseAllowList().add(entry(len(name) + ord(name[0])))
            assert DatabaseAllowList().verify().ok
    assert Device.objects.count() == 2
    for text, mode in (("", 0o600), ("ab" * 15, 0o600), ("zz" * 32, 0o600), ("ab" * 32, 0o644)):
        key.write_text(text)
        key.chmod(mode)
        with override_settings(AMESH={"DIR": str(tmp_path / "one"), "SEAL_KEY_FILE": str(key)}):
            lifecycle.reset()
            with pytest.raises(KeyStoreError):
                DatabaseAllowList().add(entry(1))
    lifecycle.reset()


def test_names_that_no_database_keeps_are_cleaned(devices: DatabaseAllowList) -> None:
    devices.add(entry(1, name="a\x00b\ud800c"))
    assert devices.read()[0].friendly_name == "a\ufffdb\ufffdc"
    assert devices.verify().ok


def test_the_id_of_a_device_is_that_of_its_key(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    assert Device.objects.get().device_id == device_id(public_key("test", 1))
