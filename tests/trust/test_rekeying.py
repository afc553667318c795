"""The secret of the seal is replaced: what each process accepts, and what becomes of the audit log and the high-water mark."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from amesh_django import checks, conf, lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.management import doctor
from amesh_django.models import AllowListSeal, AuditEvent
from amesh_django.trust import current, current_list
from amesh_django.trust.sealing import LogEnd
from authmesh.device import LocalDevice
from authmesh.protocol.errors import AllowListIntegrityFailure
from tests.trust.rollbacks import Backup
from tests.trust.test_database_allow_list import entry, sql
from tests.trust.test_rollback import reason, record

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


class Secrets:
    """Two files, and the settings of this process."""

    def __init__(self, folder: Path, settings: Any) -> None:
        self.old, self.new = str(folder / "old.key"), str(folder / "new.key")
        for path, text in ((self.old, "ab" * 32), (self.new, "cd" * 32)):
            Path(path).write_text(text)
            Path(path).chmod(0o600)
        self._settings = settings

    def use(self, *paths: str | None) -> None:
        self._settings.AMESH = {**self._settings.AMESH, "SEAL_KEY_FILES": list(paths)}
        lifecycle.reset()


@pytest.fixture
def secrets(tmp_path: Path, settings: Any) -> Secrets:
    return Secrets(tmp_path, settings)


def integrity(*words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("amesh_integrity", *words, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{err.getvalue()}{error}"
    return 0, out.getvalue() + err.getvalue()


def test_a_row_that_is_changed_between_verifying_and_sealing_is_not_sealed(
    devices: DatabaseAllowList, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets.use(secrets.old)
    devices.add(entry(1))
    secrets.use(secrets.new, secrets.old)
    before, sealed = AllowListSeal.objects.get().hmac, current_list()
    rekey_log = sealed._rekey_log

    def forge(known: LogEnd) -> LogEnd:
        """Change a row, and reset what the triggers have counted, while the audit log is being sealed."""
        sql("UPDATE amesh_device SET permissions_json = %s", '{"shell":true}')
        sql("UPDATE amesh_allowlistseal SET touched = 0")
        return rekey_log(known)

    monkeypatch.setattr(sealed, "_rekey_log", forge)
    with pytest.raises(AllowListIntegrityFailure) as caught:
        sealed.rekey()
    assert caught.value.reason == "rows_mismatch"
    assert AllowListSeal.objects.get().hmac == before


def test_all_of_it_moves_to_the_new_secret(
    devices: DatabaseAllowList, secrets: Secrets, amesh_server: LocalDevice
) -> None:
    secrets.use(secrets.old)
    devices.add(entry(1))
    secrets.use(secrets.new, secrets.old)
    current_list().snapshot()
    devices.add(entry(2))
    devices.set_permissions(entry(1).device_id, {"shell": True})
    devices.revoke(entry(2).device_id)
    secrets.use(secrets.old)  # a process that was not restarted yet
    assert devices.verify().ok
    backup = Backup()
    secrets.use(secrets.new, secrets.old)
    snapshot, epoch = current_list().snapshot(), AllowListSeal.objects.get().epoch
    assert devices.rekey()
    assert not devices.rekey()
    assert current_list().snapshot().by_key.keys() == snapshot.by_key.keys()
    assert AllowListSeal.objects.get().epoch == epoch
    devices.add(entry(3))
    assert devices.verify().ok
    secrets.use(secrets.new)
    report = devices.verify()
    assert (report.ok, report.devices) == (True, 3)
    sql("UPDATE amesh_device SET permissions_json = '{}' WHERE device_id = %s", entry(1).device_id)
    (problem,) = devices.verify().problems  # the audit log is under the new secret, too
    assert "permissions_json is '{}'" in problem
    backup.restore()
    current.reset()
    assert reason() == "seal_mismatch"
    secrets.use(secrets.new, secrets.old)
    assert reason() == "rolled_back"  # the high-water mark is under the new secret, and still there
    assert record(amesh_server)["lists"]


def test_the_secret_of_a_server_is_replaced_by_a_file_and_back(
    devices: DatabaseAllowList, secrets: Secrets, amesh_server: LocalDevice
) -> None:
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    for new, old in ((secrets.new, None), (None, secrets.new)):
        secrets.use(new, old)
        assert devices.rekey()
        secrets.use(new)
        assert devices.verify().ok
        assert record(amesh_server)["owner"] == (
            f"shared {amesh_server.identity.device_id}" if new else amesh_server.identity.device_id
        )
    backup.restore()
    current.reset()
    assert reason() == "rolled_back"


def test_another_host_moves_its_own_mark(
    devices: DatabaseAllowList, secrets: Secrets, amesh_server: LocalDevice
) -> None:
    secrets.use(secrets.old)
    devices.add(entry(1))
    backup = Backup()
    devices.add(entry(2))
    mark = amesh_server.path / "list_revision.json"
    before = mark.read_text()
    secrets.use(secrets.new, secrets.old)
    devices.rekey()
    mark.write_text(before)  # that of another host, which has not seen the change yet
    current.reset()
    current_list().snapshot()
    secrets.use(secrets.new)
    assert json.loads(before)["hmac"] != record(amesh_server)["hmac"]
    backup.restore()
    secrets.use(secrets.new, secrets.old)
    assert reason() == "rolled_back"


def test_a_list_that_is_rejected_is_not_sealed_again(devices: DatabaseAllowList, secrets: Secrets) -> None:
    secrets.use(secrets.old)
    devices.add(entry(1))
    AuditEvent.objects.update(actor="somebody")
    sql("UPDATE amesh_device SET friendly_name = 'forged'")
    secrets.use(secrets.new, secrets.old)
    with pytest.raises(AllowListIntegrityFailure):
        devices.rekey()
    code, text = integrity("--rekey", "--yes")
    assert (code, "does not match its seal" in text) == (1, True)
    sql("UPDATE amesh_device SET friendly_name = 'caller'")
    assert devices.rekey()
    event = AuditEvent.objects.get(kind="trust")
    assert not current_list().is_genuine_event(event)  # an event that amesh did not write does not become genuine


def test_the_command_asks_and_says_what_to_do_next(devices: DatabaseAllowList, secrets: Secrets) -> None:
    secrets.use(secrets.old)
    devices.add(entry(1))
    code, text = integrity("--rekey")
    assert (code, "Set AMESH['SEAL_KEY_FILES'] to [new file, old file]" in text) == (2, True)
    secrets.use(secrets.new, secrets.old)
    assert integrity("--rekey", "--reseal")[0] == 2
    code, text = integrity("--rekey", "--no-input")
    assert (code, "Do all processes of all hosts know both secrets?" in text) == (1, True)
    code, text = integrity("--rekey", "--yes")
    assert code == 0
    assert "on every other host" in text
    code, text = integrity("--rekey", "--yes", "--json")
    assert (code, json.loads(text)["rekeyed"]) == (0, False)


def test_another_secret_is_named_first_and_not_resealing(
    devices: DatabaseAllowList, secrets: Secrets, default_database: Any
) -> None:
    devices.add(entry(1))
    assert checks.check_seal_secret(None, databases=["default"]) == []
    secrets.use(secrets.old)  # as another host
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    (warning,) = checks.check_seal_secret(None, databases=["default"])
    assert warning.id == "amesh.W016"
    for text in (caught.value.text(str), str(warning.hint), integrity()[1].split("Error: ")[-1]):
        assert "set AMESH['SEAL_KEY_FILE'] to the same file on each of them" in text
        assert "--reseal" not in text.split("SEAL_KEY_FILE")[0]
    assert checks.check_seal_secret(None, databases=[]) == []
    (finding,) = [found for found in doctor.system_checks() if "amesh.W016" in found.message]
    assert "SEAL_KEY_FILE" in str(finding.hint)


@pytest.mark.parametrize("value", ["file", [], [1], 5])
def test_wrong_settings_are_reported(settings: Any, value: Any) -> None:
    settings.AMESH = {"SEAL_KEY_FILES": value}
    assert "must be a list of paths" in conf.problems()[0][1]
    settings.AMESH = {"SEAL_KEY_FILES": ["a"], "SEAL_KEY_FILE": "b"}
    assert "are both set" in conf.problems()[0][1]
