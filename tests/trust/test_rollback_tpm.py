"""An older list that was restored in the database, with a counter in the TPM: also with the whole disk; real swtpm."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal
from amesh_django.trust import current, current_list, high_water, keys, rollback
from amesh_django.trust.high_water import HighWater, Marks
from amesh_django.trust.marks import Mark
from authmesh.keystore.tpm import codes as tpm_codes
from authmesh.keystore.tpm import counter as tpm_counter
from authmesh.keystore.tpm.connection import Tpm
from authmesh.keystore.tpm.counter import NoSpace, NotOurs, TpmCounter, indices
from authmesh.keystore.tpm.link import link_to
from authmesh.keystore.tpm.place import load_library
from authmesh.protocol import DeviceEntry
from authmesh.protocol.errors import (
    AllowListBusy,
    AllowListIntegrityFailure,
    BackendUnavailable,
    KeyStoreError,
    StorageError,
)
from tests.keystore.tpms import Swtpm, forget, running_swtpm
from tests.support.database_worker import WHEN, public_key
from tests.support.directories import make
from tests.trust.rollbacks import RECORD, Backup, look, new_process

# The TPM and its library are the same on both pairs. test_rollback.py shows on both that an older list is noticed, with the same marks.
pytestmark = [pytest.mark.process, pytest.mark.unversioned]

PASSWORD = b"p" * 32


@pytest.fixture(scope="module")
def tpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


@pytest.fixture
def counter(tpm: Swtpm, request: pytest.FixtureRequest) -> TpmCounter:
    return TpmCounter(tpm.tcti, request.node.name, PASSWORD)


# --- the counter ------------------------------------------------------------------------------------------------------


def test_a_counter_only_grows(counter: TpmCounter) -> None:
    assert counter.read() is None
    first = counter.make()
    assert counter.make() == counter.read() == first
    counter.advance_to(first + 3)
    counter.advance_to(first + 3)  # a response was lost, and the request is repeated
    counter.advance_to(first)
    assert counter.read() == first + 3
    counter.remove()
    counter.remove()
    assert counter.read() is None
    assert counter.make() > first + 3
    with pytest.raises(KeyStoreError, match="is missing"):
        TpmCounter(counter._tcti, "nobody", PASSWORD).advance_to(1)


def test_a_counter_has_a_password(counter: TpmCounter, tpm: Swtpm) -> None:
    value = counter.make()
    thief = TpmCounter(tpm.tcti, counter._name, b"q" * 32)
    for use in (thief.read, thief.make, lambda: thief.advance_to(value + 1)):
        for _ in range(10):  # and no lock-out
            with pytest.raises(NotOurs):
                use()
    assert counter.read() == value
    forget(tpm.tcti)
    assert tpm.loaded() == []


def test_indices_are_the_owners() -> None:
    found = list(indices("am_x"))
    assert found == list(indices("am_x")) != list(indices("am_y"))
    assert all(0x01800000 <= index <= 0x01BFFFFF for index in found)


@pytest.mark.parametrize("how", ["another name", "ordinary", "all taken"])
def test_the_place_may_be_another_programs(counter: TpmCounter, tpm: Swtpm, how: str) -> None:
    def take(tpm: Tpm, index: int) -> None:
        public = TpmCounter(counter._tcti, "somebody", b"")._public(tpm.library, index)
        if how == "ordinary":
            public.attributes = int(public.attributes) & ~tpm_counter._COUNTER
            public.authPolicy = b""
        tpm.context.nv_define_space(b"", tpm.library.TPM2B_NV_PUBLIC(nvPublic=public))

    taken = list(indices(counter._name))[: None if how == "all taken" else 1]
    for index in taken:
        link_to(tpm.tcti).run(lambda tpm, index=index: take(tpm, index))  # type: ignore[misc]
    assert counter.read() is None
    if how == "all taken":
        with pytest.raises(NoSpace):
            counter.make()
    else:
        assert counter.make() == counter.read()
    counter.remove()


def test_the_codes_of_a_tpm_are_those_of_the_library() -> None:
    codes = load_library().TPM2_RC
    assert tpm_counter._NO_SPACE == (codes.NV_SPACE, codes.NO_RESULT) and tpm_counter._TAKEN == codes.NV_DEFINED
    assert tpm_counter._NO_SUCH_HANDLE == codes.HANDLE
    assert tpm_codes.BUSY == (codes.YIELDED, codes.TESTING, codes.NV_RATE, codes.RETRY)
    full = (codes.OBJECT_MEMORY, codes.SESSION_MEMORY, codes.MEMORY, codes.SESSION_HANDLES, codes.OBJECT_HANDLES)
    assert full == tpm_codes.FULL
    assert {codes.HANDLE, codes.REFERENCE_H0, codes.REFERENCE_H6, codes.REFERENCE_S0, codes.REFERENCE_S6} <= {
        *tpm_codes.GONE
    }
    assert (tpm_codes.NO_HIERARCHY, tpm_codes.NOT_STARTED) == (codes.HIERARCHY, codes.INITIALIZE)


def test_a_counter_survives_a_restart_of_the_tpm() -> None:
    with running_swtpm() as tpm:
        counter = TpmCounter(tpm.tcti, "am_x", PASSWORD)
        value = counter.make()
        tpm.stop(signal.SIGKILL)
        with pytest.raises(KeyStoreError, match="does not respond"):
            counter.read()
        tpm.start()
        assert counter.read() == value
        tpm.clear()
        assert counter.read() is None


def test_a_record_that_is_written_while_it_is_read_and_can_t_be_locked(counter: TpmCounter, tmp_path: Path) -> None:
    """Other processes hold the lock all the time, or this one may not write: file and counter are read one after the other."""
    writer, revisions = HighWater(tmp_path, b"k" * 32, "am_x", counter), [4, 3, 2]
    writer.remember("database", Mark(1, "seal"))

    class Reader(HighWater):
        def _locked(self, seconds: float = 0) -> Any:
            raise AllowListBusy("Another process holds the lock.")

        def _read_file(self) -> Marks:
            found = super()._read_file()
            if revisions:
                writer.remember("database", Mark(revisions.pop(), "seal"))
            return found

    reader = Reader(tmp_path, b"k" * 32, "am_x", counter)
    assert reader.load().lists["database"].revision == 4
    kept = writer.path.read_text()
    writer.remember("database", Mark(5, "seal"))
    writer.path.write_text(kept)
    with pytest.raises(AllowListIntegrityFailure, match="an old copy"):
        reader.load()


def test_no_tpm_is_said(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="The counter that identifies the newest allow list"):
        TpmCounter("none", "am_x", PASSWORD).read()


# --- the list ---------------------------------------------------------------------------------------------------------


def entry(number: int, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), "caller", role, added_at=WHEN)


@pytest.fixture
def home(
    tpm: Swtpm, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch, default_database: dict[str, str]
) -> Iterator[Path]:
    """The device directory of this process, a server whose key is in the TPM."""
    path = tmp_path / "server"
    make(path, environ=tpm.environ, backend="tpm2", max_controllers=100)
    monkeypatch.setenv("AMESH_TPM_TCTI", tpm.tcti)
    settings.AMESH = {"LAST_SEEN_SECONDS": 0, "DIR": str(path)}
    lifecycle.reset()
    yield path
    with suppress(KeyStoreError):
        counter_of(path).remove()
    lifecycle.reset()


@pytest.fixture
def devices(home: Path) -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


def counter_of(path: Path) -> TpmCounter:
    found = current_list()._high_water_file()._counter
    assert found is not None
    return found


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / RECORD).read_text())
    return found


def is_newest(path: Path) -> bool:
    seal, found = AllowListSeal.objects.get(), record(path)
    (seen,) = found["lists"].values()
    mark = {"revision": seal.revision, "seal": seal.hmac, "epoch": seal.epoch, "continues": seal.continues}
    return bool(seen == mark and found["counter"] == counter_of(path).read())


def reason() -> str:
    current.reset()
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    return caught.value.reason


def test_each_change_counts(devices: DatabaseAllowList, home: Path) -> None:
    devices.add(entry(1))
    before = record(home)["counter"]
    for number in range(2, 5):
        devices.add(entry(number))
        current_list().snapshot()
        assert is_newest(home)
    assert record(home)["counter"] == before + 3
    assert devices.memory().kept == "tpm"
    assert devices.verify().ok


def test_the_list_was_restored(devices: DatabaseAllowList, home: Path, default_database: dict[str, str]) -> None:
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    backup.restore()
    assert reason() == look(default_database, home) == "rolled_back"
    devices.reseal()
    assert is_newest(home)
    assert look(default_database, home) == "ok"


def test_the_whole_disk_was_restored(devices: DatabaseAllowList, home: Path, default_database: dict[str, str]) -> None:
    devices.add(entry(1))
    backup, text = Backup(), (home / RECORD).read_text()
    devices.revoke(entry(1).device_id)
    backup.restore()
    (home / RECORD).write_text(text)
    assert reason() == look(default_database, home) == "rolled_back"
    with pytest.raises(AllowListIntegrityFailure, match="is older than the counter in the TPM"):
        devices.add(entry(2))
    report = devices.verify()
    assert (report.reason, report.is_old, len(report.trusted)) == ("rolled_back", True, 1)
    devices.reseal()
    assert is_newest(home)
    assert look(default_database, home) == "ok"
    devices.revoke(entry(1).device_id)
    assert record(home)["complete"] is False  # what it said of other databases may have been old


def test_after_that_an_unknown_database_is_refused_as_well(
    devices: DatabaseAllowList, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1))
    text = (home / RECORD).read_text()
    devices.add(entry(2))
    (home / RECORD).write_text(text)
    devices.reseal()
    current_list().snapshot()
    monkeypatch.setattr(rollback, "database_name", lambda using: "postgresql:other")
    assert reason() == "rolled_back"
    devices.reseal()
    current_list().snapshot()
    assert len(record(home)["lists"]) == 2


@pytest.mark.parametrize("loss", ["removed", "damaged", "of another identity", "counter", "both", "password"])
def test_what_was_lost_is_no_first_use(devices: DatabaseAllowList, home: Path, loss: str) -> None:
    devices.add(entry(1))
    file, counter = home / RECORD, counter_of(home)
    if loss in ("removed", "both"):
        file.unlink()
    if loss in ("counter", "both", "password"):
        counter.remove()
    if loss == "damaged":
        file.write_text(file.read_text().replace('"complete": true', '"complete": false'))
    if loss == "of another identity":
        file.write_text(json.dumps({**record(home), "owner": "am_x"}))
    if loss == "password":  # somebody puts a counter there that looks like ours
        TpmCounter(counter._tcti, counter._name, b"q" * 32).make()
    if loss == "both":  # only root can do that: the documented limit
        current.reset()
        current_list().snapshot()
        return
    assert reason() == "revision_lost"
    assert devices.verify().reason == "revision_lost"
    devices.reseal()
    assert is_newest(home)
    current_list().snapshot()
    current.reset()
    current_list().snapshot()


def test_killed_before_the_counter_was_counted_up(
    devices: DatabaseAllowList, home: Path, default_database: dict[str, str]
) -> None:
    devices.add(entry(1))
    text, value = (home / RECORD).read_text(), record(home)["counter"]
    done = new_process(default_database, home, "die", "before counting")
    assert done.returncode == -signal.SIGKILL
    assert (record(home)["counter"], counter_of(home).read()) == (value + 1, value)
    assert look(default_database, home) == "ok"
    assert is_newest(home)  # it was brought up
    devices.add(entry(2))
    assert is_newest(home)
    (home / RECORD).write_text(text)
    assert reason() == "rolled_back"


def test_a_record_that_was_never_counted_is_no_good_after_a_reseal(
    devices: DatabaseAllowList, home: Path, default_database: dict[str, str]
) -> None:
    devices.add(entry(1))
    assert new_process(default_database, home, "die", "before counting").returncode == -signal.SIGKILL
    text, backup = (home / RECORD).read_text(), Backup()
    (home / RECORD).write_text("damaged")
    assert reason() == "revision_lost"
    devices.reseal()
    current_list().snapshot()
    assert is_newest(home)
    backup.restore()
    (home / RECORD).write_text(text)
    assert reason() == "rolled_back"


def test_killed_before_it_was_noted(devices: DatabaseAllowList, home: Path, default_database: dict[str, str]) -> None:
    devices.add(entry(1))
    assert new_process(default_database, home, "die", "before noting").returncode == -signal.SIGKILL
    assert look(default_database, home) == "ok"
    assert is_newest(home)


def test_without_the_tpm_all_requests_are_rejected(
    devices: DatabaseAllowList, home: Path, default_database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.add(entry(1))
    keys.seal_keys()  # a process that unsealed the key before
    monkeypatch.setenv("AMESH_TPM_TCTI", "none")
    current.reset()
    with pytest.raises(KeyStoreError, match="AMESH_TPM_TCTI is set to none"):
        current_list().snapshot()
    assert look(default_database, home).startswith("backend_unavailable")


def test_a_counter_is_not_spent_where_nothing_can_be_written(
    devices: DatabaseAllowList, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(high_water, "atomic_write", refuse)
    devices.add(entry(1))
    current_list().snapshot()
    assert counter_of(home).read() is None


def test_a_tpm_without_room_leaves_the_file(
    devices: DatabaseAllowList, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: TpmCounter) -> int:
        raise NoSpace("The TPM has no room for another counter.")

    true: Callable[..., int] = TpmCounter.make
    monkeypatch.setattr(TpmCounter, "make", full)
    devices.add(entry(1))
    assert "no room" in caplog.text
    assert devices.memory().kept == "file"
    backup, text = Backup(), (home / RECORD).read_text()
    devices.revoke(entry(1).device_id)
    backup.restore()
    assert reason() == "rolled_back"
    devices.reseal()
    monkeypatch.setattr(TpmCounter, "make", true)
    devices.add(entry(2))
    assert devices.memory().kept == "tpm"
    (home / RECORD).write_text(text)
    assert reason() == "rolled_back"


def test_a_shared_secret_has_a_counter_of_its_own_and_may_be_changed(
    devices: DatabaseAllowList, home: Path, settings: Any, tmp_path: Path
) -> None:
    devices.add(entry(1))
    for number, secret in enumerate(("ab" * 32, "cd" * 32), 2):
        key = tmp_path / f"{number}.key"
        key.write_text(secret)
        key.chmod(0o600)
        settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(key)}
        lifecycle.reset()
        assert reason() == "seal_mismatch"
        devices.reseal()
        current_list().snapshot()
        devices.add(entry(number))
        assert is_newest(home)
        assert devices.memory().kept == "tpm"


def test_a_rekey_replaces_the_counter(
    devices: DatabaseAllowList, home: Path, settings: Any, tmp_path: Path, default_database: dict[str, str]
) -> None:
    devices.add(entry(1))
    secrets: list[str | None] = [None]
    for number, secret in enumerate(("ab" * 32, "cd" * 32), 2):
        key = tmp_path / f"{number}.key"
        key.write_text(secret)
        key.chmod(0o600)
        secrets = [str(key), secrets[0]]
        settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": secrets}
        lifecycle.reset()
        backup = Backup()
        devices.add(entry(number))
        assert devices.rekey()
        assert is_newest(home)
        settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": secrets[:1]}
        lifecycle.reset()
        current_list().snapshot()
        devices.add(entry(number + 10))
        assert is_newest(home)
        assert devices.memory().kept == "tpm"
    now = Backup()
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": secrets}
    lifecycle.reset()
    backup.restore()
    assert reason() == "rolled_back"
    now.restore()
    current.reset()
    current_list().snapshot()


def test_an_identity_that_is_said_to_be_elsewhere_does_not_hide_the_counter(
    devices: DatabaseAllowList, home: Path, settings: Any, tmp_path: Path
) -> None:
    """With a shared secret nothing else needs the key: anyone who can write files could pretend that there is no TPM."""
    key = tmp_path / "seal.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": str(key)}
    lifecycle.reset()
    devices.add(entry(1))
    text, backup = (home / RECORD).read_text(), Backup()
    devices.revoke(entry(1).device_id)
    backup.restore()
    (home / RECORD).write_text(text)
    identity = json.loads((home / "identity.json").read_text())
    (home / "identity.json").write_text(json.dumps({**identity, "storageBackend": "encrypted-file"}))
    lifecycle.reset()
    assert reason() == "revision_lost"
    with pytest.raises(AllowListIntegrityFailure, match=r"according to identity\.json"):
        devices.add(entry(2))
    (home / "identity.json").write_text(json.dumps(identity))
    lifecycle.reset()
    assert reason() == "rolled_back"


def test_a_new_identity_frees_the_room(devices: DatabaseAllowList, home: Path, tpm: Swtpm) -> None:
    devices.add(entry(1))
    counter = counter_of(home)
    make(home, environ=tpm.environ, backend="tpm2", force=True)
    assert counter.read() is None
    lifecycle.reset()
    assert reason() == "seal_mismatch"
    devices.reseal()
    current_list().snapshot()
    assert is_newest(home)
