"""Files of the device directory: atomic, private, locked, on a full disk."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amesh_django.test import EphemeralDevice
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.files.storage import atomic_write, locked
from authmesh.protocol import AmeshError, KeyStoreError
from authmesh.protocol.errors import AllowListBusy, DirectoryError, StorageError
from tests.support.directories import make, mode, python


def test_a_new_file_that_cannot_be_written_has_no_old_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be written \(.*\)\. The file was not created\."):
        atomic_write(tmp_path / "missing" / "file", "new")


@pytest.mark.process
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """The kernel enforces a limit on the size of files in the middle of a write."""
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try: storage.atomic_write(Path({str(path)!r}), "x" * 20_000)
except AmeshError as error: print(type(error).__name__, error)
"""
    said = python(code)
    assert said.startswith("StorageError ")
    assert "The old file is unchanged" in said
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_written_is_on_the_disk_before_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test cannot cut the power, so the order of the system calls is checked."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def replaced(source: str, target: Path) -> None:
        steps.append(f"replace: {Path(source).read_text()}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    atomic_write(tmp_path / "file", "whole")
    assert steps == ["sync file", "replace: whole", "sync folder"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Yield a file system of 64 KiB if this user can mount one."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk(tiny_disk: Path | None) -> None:
    """An addition to the test above, because only root can mount."""
    if tiny_disk is None:
        return
    device = EphemeralDevice().write(tiny_disk, max_controllers=100)
    allow_list = FileAllowList(device)
    allow_list.add(EphemeralDevice("kept").entry())
    before = (tiny_disk / "allow_list.json").read_bytes()
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageError, match="Free disk space"):
        allow_list.add(EphemeralDevice("lost").entry())
    assert (tiny_disk / "allow_list.json").read_bytes() == before
    assert [entry.friendly_name for entry in allow_list.read()] == ["kept"]
    with pytest.raises(StorageError):
        make(tiny_disk, force=True)
    assert read_identity(tiny_disk) == device.identity
    assert [entry.friendly_name for entry in FileAllowList(LocalDevice(tiny_disk, environ={})).read()] == ["kept"]
    filler.unlink()
    allow_list.add(EphemeralDevice("next").entry())
    assert len(allow_list.read()) == 2


@pytest.mark.process
def test_the_lock_keeps_others_out(tmp_path: Path) -> None:
    order: list[str] = []
    taken = threading.Event()

    def other() -> None:
        taken.wait()
        with pytest.raises(AllowListBusy, match="Try again"), locked(tmp_path, seconds=0.05):
            order.append("never")
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with locked(tmp_path), locked(tmp_path):  # the same thread can acquire it again
        taken.set()
        code = f"""
try:
    with storage.locked(Path({str(tmp_path)!r}), seconds=0.05): print("in")
except AmeshError as error: print(type(error).__name__)
"""
        assert python(code) == "AllowListBusy\n"
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert mode(tmp_path / ".lock") == 0o600


@pytest.mark.process
def test_the_lock_makes_no_folder_and_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"), locked(tmp_path / "none"):
        pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(PermissionError, match="mine"), locked(tmp_path):
        raise PermissionError("mine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"Free disk space"), locked(tmp_path / "d"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    device = EphemeralDevice().write(tmp_path)
    left = [tmp_path / ".allow_list.json.abc.amesh-tmp", tmp_path / "keys" / ".x.key.json.def.amesh-tmp"]
    for path in left:
        path.write_text("half")
    FileAllowList(device).add(EphemeralDevice().entry())
    assert not any(path.exists() for path in left)


def test_errors_are_of_one_family() -> None:
    assert all(issubclass(kind, AmeshError) for kind in (StorageError, DirectoryError, AllowListBusy, KeyStoreError))
