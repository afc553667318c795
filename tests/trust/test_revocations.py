"""After an older database was restored: which devices were revoked since, and revoking them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import current, current_list, revocations
from authmesh.device import LocalDevice
from tests.commands.test_management import answer, call
from tests.trust.rollbacks import Backup
from tests.trust.test_database_allow_list import entry
from tests.trust.test_rollback import reason

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


@pytest.fixture
def restored(amesh_server: LocalDevice) -> DatabaseAllowList:
    """A list with devices 1 to 4. Three were revoked since, and one of them was trusted again."""
    devices = DatabaseAllowList(by="alice")
    devices.add_all([entry(number, name=f"device {number}") for number in range(1, 5)])
    backup = Backup()
    for number in (1, 2, 3):
        devices.revoke(entry(number).device_id, reason="stolen")
    devices.add(entry(3))
    backup.restore()
    current.reset()
    assert reason() == "rolled_back"
    return devices


def test_what_was_revoked_since_is_listed_and_revoked_again(
    restored: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [entry(number).device_id for number in (1, 2)]
    assert [one.device_id for one in restored.lost_revocations()] == lost
    done = call("integrity", "--json", "--no-input")
    assert (done.code, json.loads(done.out)["lostRevocations"]) == (1, lost)
    answer(monkeypatch, "y\ny\n")
    done = call("integrity", "--reseal")
    assert done.code == 0, done.err
    assert "2 devices of this list were revoked on this host before, and are trusted again:" in done.out
    assert f"{lost[0]} (device 1), revoked " in done.out and "by alice: stolen" in done.out
    assert f"Revoked again: {lost[0]}, {lost[1]}." in done.out
    revoked = Device.objects.exclude(revoked_at=None).order_by("pk")
    assert [(row.device_id, row.revoke_reason) for row in revoked] == [(name, "stolen") for name in lost]
    current_list().snapshot()
    assert restored.lost_revocations() == []


def test_nobody_is_revoked_again_without_an_answer(
    restored: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "y\nn\n")
    done = call("integrity", "--reseal")
    assert done.code == 0
    names = f"{entry(1).device_id} {entry(2).device_id}"
    assert f"They are still trusted. To revoke them, run manage.py amesh_revoke {names}." in done.err
    assert len(restored.lost_revocations()) == 2
    done = call("integrity", "--reseal", "--yes", "--json")
    assert json.loads(done.out)["revokedAgain"] == names.split()


def test_the_file_keeps_the_newest_and_is_not_used_if_it_was_changed(
    amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "MAX_KEPT", 2)
    devices = DatabaseAllowList()
    devices.add_all([entry(number) for number in range(3)])
    backup = Backup()
    for number in range(3):
        devices.revoke(entry(number).device_id)
    backup.restore()
    assert [one.device_id for one in devices.lost_revocations()] == [entry(number).device_id for number in (1, 2)]
    file = amesh_server.path / revocations.FILE_NAME
    document: dict[str, Any] = json.loads(file.read_text())
    for one in document["lists"].values():
        one.pop()
    file.write_text(json.dumps(document))
    assert devices.lost_revocations() == []
    file.write_text("{")
    assert devices.lost_revocations() == []


def test_the_file_names_no_columns_and_one_of_another_version_is_not_used(
    amesh_server: LocalDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Each revocation reads and writes a thousand entries: their names and indents would be half of the time."""
    devices = DatabaseAllowList(by="alice")
    devices.add(entry(1, name="laptop"))
    devices.revoke(entry(1).device_id, reason="lost")
    file = amesh_server.path / revocations.FILE_NAME
    document: dict[str, Any] = json.loads(file.read_text())
    ((name, device, _at, by, why),) = next(iter(document["lists"].values()))
    assert (name, device, by, why) == (entry(1).device_id, "laptop", "alice", "lost") and "\n" not in file.read_text()
    del document["hmac"]
    document["version"] = "1"
    file.write_text(json.dumps({**document, "hmac": revocations._mac(current_list().keys, document)}))
    assert current_list().revocations() == [] and "cannot be used" in caplog.text


def test_a_file_that_cannot_be_read_for_a_moment_is_not_overwritten(
    amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = DatabaseAllowList(by="alice")
    devices.add_all([entry(1), entry(2)])
    devices.revoke(entry(1).device_id, reason="stolen")
    path = amesh_server.path / revocations.FILE_NAME
    before = path.read_bytes()

    def fails(self: Path, *args: Any, **kwargs: Any) -> str:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        devices.revoke(entry(2).device_id, reason="stolen")  # what was revoked counts in any case
    assert path.read_bytes() == before
    assert Device.objects.exclude(revoked_at=None).count() == 2
