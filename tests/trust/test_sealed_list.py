"""The sealed list as one object: its layers, its locks, a device that is not in place yet, and its errors."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from amesh_django import trust
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AllowListSeal, AuditEvent
from amesh_django.server import DatabaseTrust
from amesh_django.spelling import manage_py
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust import SealedList, current, current_list, keys
from amesh_django.trust.marks import Mark, is_older
from authmesh.device import LocalDevice
from authmesh.protocol import DeviceEntry
from authmesh.protocol.errors import AllowListIntegrityFailure, Run
from tests.support.database_worker import WHEN, public_key
from tests.trust.rollbacks import RECORD, Backup

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


class Forbidden:
    """A lock that nobody may take."""

    def __enter__(self) -> None:
        raise AssertionError("The lock was taken.")

    def __exit__(self, *error: object) -> None: ...


def entry(number: int, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(public_key("test", number), "caller", role, added_at=WHEN)


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


def test_the_layers_are_those_that_the_theory_of_operation_lists() -> None:
    lines = re.findall(r"^    (\w+) {2,}(\w+)(\(\))? {2,}(.+)$", trust.__doc__ or "", re.MULTILINE)
    assert len(lines) == 20
    bases = list(SealedList.__mro__)
    for file, name, _call, text in lines:
        found = getattr(importlib.import_module(f"amesh_django.trust.{file}"), name)
        for method in re.findall(r"(\w+)\(\)", text):
            assert hasattr(found, method), (name, method)
        if isinstance(found, type) and issubclass(SealedList, found):
            assert bases.pop(0) is found
    assert bases == [object]


def test_a_seal_of_revision_0_that_is_gone_is_a_rollback(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    """The process and the high-water file give the same answer."""
    assert is_older(None, Mark(0, "seal"))
    devices.add_all([])
    assert current_list().snapshot().revision == AllowListSeal.objects.get().revision == 0
    (amesh_server.path / RECORD).unlink()  # only the process knows the list now
    AllowListSeal.objects.all().delete()
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    assert caught.value.reason == "rolled_back"


@pytest.mark.parametrize(
    ("found", "known", "expected"),
    [
        (Mark(1, "a"), Mark(2, "b"), True),
        (Mark(2, "a"), Mark(2, "b"), True),
        (Mark(2, "b"), Mark(2, "b"), False),
        (Mark(3, "a"), Mark(2, "b"), False),
        (None, Mark(2, "b"), True),
    ],
)
def test_which_list_is_older(found: Mark | None, known: Mark, expected: bool) -> None:
    assert is_older(found, known) is expected


def test_the_event_of_a_reseal_has_a_name_that_every_database_can_store(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    devices.reseal(by="a\x00b\ud800c" + "x" * 200)
    event = AuditEvent.objects.get(kind="reseal")
    assert event.actor == "a\ufffdb\ufffdc" + "x" * 145
    assert current_list().is_genuine_event(event)
    assert devices.verify().ok


def test_a_device_that_is_not_in_place_yet_has_its_own_keys_and_no_mark(
    devices: DatabaseAllowList, amesh_server: LocalDevice, tmp_path: Path
) -> None:
    new = EphemeralDevice("new").write(tmp_path / "new", max_controllers=1)
    store = DatabaseTrust()
    store.check(new, entry(1))
    store.add(new, entry(1))
    assert DatabaseAllowList(device=new).read() == [entry(1)]
    assert SealedList("default", device=new).keys.owner == new.identity.device_id
    assert keys.seal_keys().owner == amesh_server.identity.device_id
    assert not (amesh_server.path / RECORD).exists() and not (new.path / RECORD).exists()
    assert DatabaseAllowList(device=new).memory().kept == "none"
    with pytest.raises(AllowListIntegrityFailure) as caught:
        devices.read()
    assert caught.value.reason == "seal_mismatch"
    with pytest.raises(AllowListIntegrityFailure), transaction.atomic():
        store.add(new, entry(1))
        store.check(new, entry(1))  # what it verified in this transaction is not good for another key
        devices.read()


def test_a_transaction_that_holds_the_seal_waits_for_no_thread(
    devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it could wait for a thread that waits for the seal."""
    devices.add(entry(1))
    current_list().snapshot()
    monkeypatch.setattr(current_list(), "_look_at", 0.0)
    monkeypatch.setattr(current_list(), "_lock", Forbidden())
    for lock in (lambda: devices.add_all([]), devices.verify, lambda: devices.add(entry(2))):
        with transaction.atomic():
            lock()
            assert entry(1).public_key in current_list().snapshot().by_key
    with pytest.raises(AssertionError, match="was taken"):
        current_list().snapshot()


@pytest.mark.process
@pytest.mark.parametrize("is_held", [False, True])
def test_a_forked_child_finds_the_lock_open(devices: DatabaseAllowList, is_held: bool) -> None:
    devices.add(entry(1))
    verified = current_list().snapshot()
    sealed = current_list()
    if is_held:  # as by another thread, which does not exist in the child
        sealed._lock.acquire()
    child = os.fork()
    if child == 0:
        expected = None if is_held else verified
        os._exit(0 if sealed._snapshot is expected and not sealed._lock.locked() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sealed._snapshot is verified
    assert sealed._lock.locked() is is_held


def test_an_error_has_its_next_step_as_data(devices: DatabaseAllowList) -> None:
    devices.add(entry(1))
    backup = Backup()
    devices.revoke(entry(1).device_id)
    backup.restore()
    current.reset()
    with pytest.raises(AllowListIntegrityFailure) as caught:
        current_list().snapshot()
    error = caught.value
    assert (
        error.message
        == "The list in the database is older (revision 1) than one that this server has seen (revision 2)."
    )
    assert Run("integrity", "--reseal") in error.hint
    assert "run manage.py amesh_integrity --reseal. The command shows" in error.text(manage_py)
    with pytest.raises(AllowListIntegrityFailure) as again:  # not examined again, and the same words
        current_list().snapshot()
    assert again.value is not error and str(again.value) == str(error)
    assert devices.verify().problems == [error.message]
