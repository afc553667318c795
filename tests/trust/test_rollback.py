"""An older list that was restored in the database, without a TPM; on SQLite and PostgreSQL."""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal
from amesh_django.trust import SealedList, current, current_list, high_water, rollback, snapshot
from authmesh.device import LocalDevice
from authmesh.protocol import DeviceEntry
from authmesh.protocol.errors import AllowListIntegrityFailure, StorageError
from tests.support import fork_server
from tests.support.database_worker import WHEN, public_key
from tests.support.databases import EACH_ON_ONE_PAIR, environment
from tests.trust.rollbacks import RECORD, Backup, look, new_process

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


def entry(number: int, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), "caller", role, added_at=WHEN)


def reason() -> str:
    """Return why this process rejects the list."""
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    return caught.value.reason


def record(device: LocalDevice) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((device.path / RECORD).read_text())
    return found


def noted(device: LocalDevice) -> dict[str, Any]:
    """Return the high-water mark of the one database."""
    (found,) = record(device)["lists"].values()
    return dict(found)


def is_newest(device: LocalDevice) -> bool:
    seal = AllowListSeal.objects.get()
    return noted(device) == {
        "revision": seal.revision,
        "seal": seal.hmac,
        "epoch": seal.epoch,
        "continues": seal.continues,
    }


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


@pytest.fixture
def restored(devices: DatabaseAllowList) -> Backup:
    """A device was revoked, and the backup from before was restored."""
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    backup.restore()
    current.reset()
    return backup


@pytest.mark.process
def test_a_process_that_starts_later_refuses_it(
    restored: Backup, devices: DatabaseAllowList, default_database: dict[str, str], amesh_server: LocalDevice
) -> None:
    assert reason() == "rolled_back"
    assert look(default_database, amesh_server.path) == "rolled_back"
    for change in (
        lambda: devices.add(entry(2)),
        lambda: devices.set_permissions(entry(1).device_id, {}),
    ):
        with pytest.raises(AllowListIntegrityFailure, match="older"):
            change()
    assert reason() == "rolled_back"
    report = devices.verify()
    assert (report.ok, report.reason, report.is_old) == (False, "rolled_back", True)
    assert report.trusted == [f"{entry(1).device_id} (caller) as controller"]


@pytest.mark.process
def test_a_person_accepts_it(
    restored: Backup, devices: DatabaseAllowList, default_database: dict[str, str], amesh_server: LocalDevice
) -> None:
    devices.reseal()
    assert is_newest(amesh_server)
    assert not current_list().snapshot().by_key[entry(1).public_key].revoked
    assert look(default_database, amesh_server.path) == "ok"
    devices.revoke(entry(1).device_id)
    assert devices.verify().ok
    assert look(default_database, amesh_server.path) == "ok"
    restored.restore()
    assert look(default_database, amesh_server.path) == "rolled_back"


def test_a_change_is_noted_when_it_is_there_to_stay(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    devices.add(entry(1))
    assert is_newest(amesh_server)
    with transaction.atomic():
        devices.add(entry(2))
        assert noted(amesh_server)["revision"] == 1
    assert is_newest(amesh_server)
    with pytest.raises(RuntimeError), transaction.atomic():
        devices.add(entry(3))
        raise RuntimeError
    assert is_newest(amesh_server)
    current_list().snapshot()


def test_an_empty_list_that_was_sealed_and_undone_was_never_there(devices: DatabaseAllowList) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        devices.add_all([])
        current_list().snapshot()
        raise RuntimeError
    current.reset()
    assert not current_list().snapshot().by_key
    devices.add(entry(1))


def test_another_list_of_the_same_revision_is_refused(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    kept = (amesh_server.path / RECORD).read_text()
    backup.restore()
    (amesh_server.path / RECORD).unlink()  # as on another host, which does not know
    current.reset()
    devices.add(entry(2))
    (amesh_server.path / RECORD).write_text(kept)
    current.reset()
    assert reason() == "rolled_back"
    assert "same revision (2)" in devices.verify().problems[0]


def test_a_database_that_was_emptied_is_refused(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    backup = Backup()  # of nothing
    devices.add(entry(1))
    backup.restore()
    current.reset()
    assert reason() == "rolled_back"
    with pytest.raises(AllowListIntegrityFailure, match="contains no list"):
        devices.add(entry(2))
    devices.reseal()
    devices.add(entry(2))
    assert current_list().snapshot().revision > 1


@pytest.mark.process
def test_an_idle_process_that_knows_the_very_list_that_was_restored(
    devices: DatabaseAllowList,
    default_database: dict[str, str],
    amesh_server: LocalDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices.add(entry(1))
    current_list().snapshot()
    backup = Backup()
    assert new_process(default_database, amesh_server.path, "die", "before counting").returncode == 0  # no counter here
    assert noted(amesh_server)["revision"] == 2
    backup.restore()
    monkeypatch.setattr(snapshot, "_LOOK_SECONDS", 0.0)
    current_list()._look_at = 0.0
    assert reason() == "rolled_back"
    assert reason() == "rolled_back"


def test_an_installation_from_before_goes_on(
    devices: DatabaseAllowList, amesh_server: LocalDevice, caplog: pytest.LogCaptureFixture
) -> None:
    devices.add(entry(1))
    (amesh_server.path / RECORD).unlink()
    lifecycle.reset()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="amesh_django.allow_list"):
        current_list().snapshot()
    (line,) = [r for r in caplog.records if r.name == "amesh_django.allow_list"]
    assert (line.levelno, "Without a TPM" in line.getMessage()) == (logging.INFO, True)
    assert is_newest(amesh_server)
    assert (amesh_server.path / RECORD).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["{", "", "{}", '{"owner": 1}', "\udcff", "forged", "moved", "an older format"])
def test_a_damaged_record_is_written_again_with_a_warning(
    devices: DatabaseAllowList, amesh_server: LocalDevice, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Without a TPM it could as well have been removed: that is the documented limit."""
    devices.add(entry(1))
    found = record(amesh_server)
    if damage == "forged":
        damage = json.dumps(
            {**found, "lists": {name: {**seen, "revision": 0} for name, seen in found["lists"].items()}}
        )
    elif damage == "moved":
        damage = json.dumps({**found, "hmac": "0" * 64})
    elif damage == "an older format":
        damage = json.dumps({**found, "lists": []})
    (amesh_server.path / RECORD).write_bytes(damage.encode("utf-8", "surrogateescape"))
    current.reset()
    caplog.clear()
    current_list().snapshot()
    assert any("A new one will be written" in r.getMessage() and r.levelno == logging.WARNING for r in caplog.records)
    assert is_newest(amesh_server)


def test_the_record_of_another_identity_says_nothing(
    devices: DatabaseAllowList, amesh_server: LocalDevice, settings: Any, tmp_path: Path
) -> None:
    """Nor does the one of another host with the same secret: each host has its own."""
    key = tmp_path / "seal.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(key)}
    lifecycle.reset()
    devices.add(entry(1))
    assert record(amesh_server)["owner"] == f"shared {amesh_server.identity.device_id}"
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": None}
    lifecycle.reset()
    assert reason() == "seal_mismatch"
    devices.reseal()
    assert record(amesh_server)["owner"] == amesh_server.identity.device_id
    current_list().snapshot()


@pytest.mark.process
@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_two_hosts_with_a_shared_secret(
    devices: DatabaseAllowList,
    amesh_server: LocalDevice,
    default_database: dict[str, str],
    settings: Any,
    tmp_path: Path,
) -> None:
    key, other = tmp_path / "seal.key", tmp_path / "other"  # the other host has no identity, nor a directory yet
    key.write_text("ab" * 32)
    key.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(key)}
    lifecycle.reset()
    env = {"TEST_SEAL_KEY_FILE": str(key)}
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    assert look(default_database, other, env=env) == "ok"
    assert noted(amesh_server) == json.loads((other / RECORD).read_text())["lists"].popitem()[1]
    backup.restore()
    current.reset()
    assert reason() == look(default_database, other, env=env) == "rolled_back"
    devices.reseal()  # on one host
    current_list().snapshot()
    assert look(default_database, other, env=env) == "ok"
    (amesh_server.path / RECORD).write_text((other / RECORD).read_text())  # one host's is nothing to the other
    current.reset()
    current_list().snapshot()
    assert record(amesh_server)["owner"] != json.loads((other / RECORD).read_text())["owner"]


def test_a_reseal_with_a_clock_that_is_wrong(
    restored: Backup, devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = noted(amesh_server)["revision"]
    monkeypatch.setattr("time.time_ns", lambda: 0)
    devices.reseal()
    assert noted(amesh_server)["revision"] == before + 1
    current_list().snapshot()


@pytest.mark.process
def test_a_file_that_was_copied_back(
    devices: DatabaseAllowList, amesh_server: LocalDevice, default_database: dict[str, str], tmp_path: Path
) -> None:
    """The SQLite file alone; and together with the device directory, which is the documented limit without a TPM."""
    if connection.vendor != "sqlite":
        return  # on PostgreSQL the rows are restored, above
    database, copy = Path(default_database["NAME"]), tmp_path / "backup.sqlite3"
    devices.add(entry(1))
    connection.close()
    shutil.copy(database, copy)
    whole = (amesh_server.path / RECORD).read_text()
    devices.revoke(entry(1).device_id)
    connection.close()
    shutil.copy(copy, database)
    assert look(default_database, amesh_server.path) == "rolled_back"
    (amesh_server.path / RECORD).write_text(whole)
    assert look(default_database, amesh_server.path) == "ok"


@pytest.mark.process
def test_killed_between_the_change_and_the_note(
    devices: DatabaseAllowList, amesh_server: LocalDevice, default_database: dict[str, str]
) -> None:
    devices.add(entry(1))
    backup = Backup()
    done = new_process(default_database, amesh_server.path, "die", "before noting")
    assert done.returncode == -signal.SIGKILL
    assert noted(amesh_server)["revision"] == 1
    current.reset()
    assert current_list().snapshot().revision == 2
    assert is_newest(amesh_server)
    backup.restore()
    assert look(default_database, amesh_server.path) == "rolled_back"


@pytest.mark.process
@pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True)
def test_four_processes_leave_a_right_record(
    devices: DatabaseAllowList, amesh_server: LocalDevice, default_database: dict[str, str]
) -> None:
    variables = {"DJANGO_SETTINGS_MODULE": "tests.settings", "AUTH_MESH_DIR": str(amesh_server.path)}
    workers = [
        fork_server.start(
            [sys.executable, "-m", "tests.support.database_worker", "add", seed, "8"],
            env={**os.environ, **variables, **environment(default_database)},
        )
        for seed in "abcd"
    ]
    for _ in range(20):
        current_list().snapshot()
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert (worker.returncode, errors) == (0, "")
    assert AllowListSeal.objects.get().revision == 32
    assert is_newest(amesh_server)
    current_list().snapshot()
    assert look(default_database, amesh_server.path) == "ok"


def test_a_list_that_was_read_before_others_went_on_is_not_taken_for_an_old_one(
    devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1))
    stale = [current_list().read_seal()]
    devices.add(entry(2))
    current.reset()
    true = SealedList.read_seal
    monkeypatch.setattr(SealedList, "read_seal", lambda self: stale.pop() if stale else true(self))
    assert current_list().snapshot().revision == 2


def test_others_go_on_all_the_time(
    devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1, "target"))
    stale = [current_list().read_seal()]
    devices.add(entry(2, "target"))
    current.reset()
    true, committed, numbers = SealedList.read_seal, SealedList.read_committed_seal, iter(range(3, 7))

    def go_on(self: SealedList) -> Any:
        row = committed(self)
        if number := next(numbers, 0):
            devices.add(entry(number, "target"))
        return row

    monkeypatch.setattr(SealedList, "read_seal", lambda self: stale.pop() if stale else true(self))
    monkeypatch.setattr(SealedList, "read_committed_seal", go_on)
    assert current_list().snapshot().by_key.keys() >= {entry(1).public_key, entry(2).public_key}


@pytest.mark.parametrize("forged", [False, True])
def test_a_newer_seal_that_is_there_for_a_moment_is_no_excuse(
    devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch, forged: bool
) -> None:
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    newest = current_list().read_seal()
    assert newest is not None
    if forged:
        newest = newest._replace(revision=99)
    backup.restore()
    current.reset()
    monkeypatch.setattr(SealedList, "read_committed_seal", lambda self: newest)
    assert reason() == ("rolled_back" if forged else "rows_mismatch")


@pytest.mark.process
def test_a_transaction_that_began_before_the_others_went_on(
    devices: DatabaseAllowList, amesh_server: LocalDevice, default_database: dict[str, str]
) -> None:
    devices.add(entry(1))
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode = wal")  # else writers wait
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        AllowListSeal.objects.get()
        new_process(default_database, amesh_server.path, "die", "before counting")
        assert noted(amesh_server)["revision"] == 2
        current.reset()
        assert current_list().snapshot().revision == 1
        assert current_list()._snapshot is None
    assert current_list().snapshot().revision == 2


def test_requests_are_accepted_if_the_mark_cannot_be_written(
    devices: DatabaseAllowList,
    amesh_server: LocalDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    devices.add(entry(1))
    lock = amesh_server.path / ".lock"
    lock.unlink()
    lock.mkdir()  # which stops root too
    monkeypatch.setattr(snapshot, "_LOOK_SECONDS", 0.0)
    caplog.clear()
    for number in (2, 3):
        devices.add(entry(number))
        current_list().snapshot()
        current_list().snapshot()
    assert noted(amesh_server)["revision"] == 1
    (line,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "A process that starts later cannot detect" in line.getMessage()
    current.reset()
    backup = Backup()
    devices.add(entry(4))
    current_list().snapshot()
    backup.restore()
    assert reason() == "rolled_back"  # this process has seen the newer one
    devices.reseal()
    current_list().snapshot()
    lock.rmdir()
    lifecycle.reset()
    current_list().snapshot()  # as soon as it can be written, it is
    assert is_newest(amesh_server)


def test_a_mark_that_could_not_be_written_is_written_later(
    devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(high_water, "locked", refuse)
    devices.add(entry(1))
    current_list().snapshot()
    monkeypatch.undo()
    current_list().snapshot()
    assert not (amesh_server.path / RECORD).exists()
    current_list()._look_at = 0.0
    current_list().snapshot()
    assert is_newest(amesh_server)


def test_a_request_opens_no_file_while_nothing_changes(
    devices: DatabaseAllowList, amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1))
    current_list().snapshot()
    opened: list[Any] = []
    true: Callable[..., Any] = io.open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: (opened.append(a), true(*a, **k))[1])
    monkeypatch.setattr(io, "open", lambda *a, **k: (opened.append(a), true(*a, **k))[1])
    for _ in range(10):
        current_list().snapshot()
    assert opened == []
    current_list()._look_at = 0.0
    current_list().snapshot()  # no process has stored a mark: one stat is enough
    assert opened == []
    devices.add(entry(2))
    opened.clear()
    current_list().snapshot()
    assert [Path(a[0]).name for a in opened] == [RECORD]


def test_what_a_database_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(**settings: object) -> str | None:
        connection = SimpleNamespace(vendor="postgresql", settings_dict={"NAME": "", "OPTIONS": {}, **settings})
        monkeypatch.setattr(rollback, "connections", {"default": connection})
        return rollback.database_name("default")

    assert name(NAME="shop") == name(NAME="shop", HOST="elsewhere", OPTIONS={"service": "x"}) == "postgresql:shop"
    assert name(OPTIONS={"service": "one"}) != name(OPTIONS={"service": "two"})


def test_a_second_database_is_begun_with_a_warning(
    devices: DatabaseAllowList,
    amesh_server: LocalDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    devices.add(entry(1))
    monkeypatch.setattr(rollback, "database_name", lambda using: "postgresql:copy")
    current.reset()
    current_list().snapshot()
    assert "sees the one of postgresql:copy for the first time" in caplog.text
    assert "give each server its own device directory (AMESH['DIR']) and its own secret of the seal" in caplog.text
    assert len(record(amesh_server)["lists"]) == 2


def test_the_command_shows_it_and_accepts_it(restored: Backup, amesh_server: LocalDevice) -> None:
    def call(*words: str) -> tuple[int, str]:
        out = io.StringIO()
        try:
            call_command("amesh_integrity", *words, stdout=out, stderr=out)
        except CommandError as error:
            return error.returncode, out.getvalue() + str(error)
        return 0, out.getvalue()

    code, text = call()
    assert code == 1
    assert "older (revision 1) than one that this server has seen (revision 2)" in text
    assert f"  {entry(1).device_id} (caller) as controller" in text
    code, text = call("--json")
    assert (code, json.JSONDecoder().raw_decode(text)[0]["newest"]) == (1, {"revision": 2, "kept": "file"})
    code, text = call("--reseal", "--yes")
    assert code == 0
    assert "Revoked again: " in text and "Now revoke again the devices that other hosts have revoked since." in text
    code, text = call()
    assert code == 0
    assert f"according to {amesh_server.path / RECORD}. Without a TPM" in text


HOLDER = """
import sys
from pathlib import Path
from authmesh.files.storage import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.process
def test_a_lock_that_another_process_holds_stalls_no_request(
    devices: DatabaseAllowList,
    amesh_server: LocalDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def is_newest() -> bool:
        return bool(noted(amesh_server)["revision"] == AllowListSeal.objects.get().revision)

    devices.add(entry(1))
    current_list().snapshot()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(amesh_server.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        monkeypatch.setattr(SealedList, "remember_on_commit", lambda self, row: None)  # killed before that
        devices.add(entry(2))
        started = time.monotonic()
        for _request in range(3):
            current_list()._look_at = 0.0
            current_list().snapshot()
        assert time.monotonic() - started < 2
        assert not is_newest()
        holder.communicate(b"\n")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    current_list()._look_at = 0.0
    current_list().snapshot()
    assert is_newest()
