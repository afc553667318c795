"""An identity that is not one yet: made aside, and put in place in one step when its controller has answered (protocol.md §7).

All lies in a folder of its own inside the device directory, sealed and encrypted like a device directory, until the acknowledgement
is there. Then one small file says so, and from that moment on the rest is only carried out, by whoever comes next if this process
is killed: the controller is stored, the key is moved, and ``identity.json`` last of all. So there is either no identity, or one that
has its key and its controller.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import authmesh.files.storage as files
from authmesh.device import FileAllowList, Identity, LocalDevice, init_device, read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.clock import utc_now
from authmesh.files.storage import expanded
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.errors import AmeshError, IdentityExists, InvalidInput, StorageError

FOLDER = ".bootstrap"


@dataclass(frozen=True, slots=True)
class Record:
    """The token was acknowledged.

    Attributes:
        controller: who made it.
        stored: it is in the allow list.
    """

    controller: DeviceEntry
    stored: bool


class Trust:
    """Where the controller of a device that is just being made is stored: in the file, beside its identity.

    Django has one that stores it in the database.
    """

    def check(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """Fail now if :meth:`add` would: no token is to be used up for that.

        Raises:
            AllowListError: the list does not hold, or takes no more controllers.
        """

    def add(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """Store the controller, sealed by *device*. May be called again with the same.

        Raises:
            AllowListError, KeyStoreError: it can't be stored.
        """
        FileAllowList(device).add(controller)


class Staging:
    """The folder aside.

    Args:
        directory: the device directory.
        environ: where the variables of protocol.md §10 are looked up.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str] = os.environ) -> None:
        self.directory = directory
        self.path = directory / FOLDER
        self._environ = environ
        self._record = self.path / "acknowledged.json"

    def _passphrase_file(self) -> Path:
        moved = self._environ.get("AMESH_PASSPHRASE_FILE")
        return expanded(moved) if moved else self.directory / ".passphrase"

    def _inner_environ(self) -> dict[str, str]:
        """A passphrase that is there already is the one to be used; a new one stays aside until the end."""
        inner = {name: value for name, value in self._environ.items() if name != TOKEN_VARIABLE}
        inner.pop("AMESH_PASSPHRASE_FILE", None)
        if not (self.path / ".passphrase").exists() and self._passphrase_file().exists():
            inner["AMESH_PASSPHRASE_FILE"] = str(self._passphrase_file())
        return inner

    def open(self) -> LocalDevice:
        """The device aside.

        Raises:
            DirectoryError, KeyStoreError: there is none, or it can't be opened.
        """
        return LocalDevice(self.path, environ=self._inner_environ())

    def device(self, name: str) -> LocalDevice:
        """The device aside, made where there is none. One that an attempt has left there is taken up again: its controller may know
        it already.

        Args:
            name: what it will be called.

        Raises:
            StorageError, KeyStoreError: it can't be made; nothing was written.
        """
        with contextlib.suppress(AmeshError):
            device = self.open()
            device.seal_secret()
            if device.identity.friendly_name == name:
                return device
        self.discard()
        try:
            init_device(self.path, name, now=utc_now(), environ=self._inner_environ())
            return self.open()
        except BaseException:
            self.discard()
            raise

    def record(self, controller: DeviceEntry, *, stored: bool = False) -> None:
        """The token was acknowledged: what is aside will become this device.

        Raises:
            StorageError: the disk refuses.
        """
        files.atomic_write(self._record, files.json_text({"controller": controller.to_json(), "stored": stored}))

    def recorded(self) -> Record | None:
        """What :meth:`record` wrote, if what is aside is still to become this device."""
        if not (self.path / "identity.json").exists():
            return None
        try:
            value: Any = json.loads(self._record.read_text("utf-8"))
            return Record(DeviceEntry.from_json(value["controller"]), value["stored"] is True)
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):
            return None

    def settle(self, trust: Trust) -> tuple[Identity, DeviceEntry]:
        """Make what is aside this device. Takes up where another process was interrupted.

        Raises:
            IdentityExists: this device has another identity by now; what was aside is gone.
            AmeshError: it can't be written; it stays aside, and is taken up again the next time.
        """
        found = self.recorded()
        if found is None:
            raise StorageError(f"What was prepared in {self.path} is gone. Make a new token with provision.")
        if not found.stored:
            trust.add(self.open(), found.controller)
            self.record(found.controller, stored=True)
        with files.locked(self.directory):
            if (self.directory / "identity.json").exists():
                self.discard()
                raise IdentityExists(
                    f"There is an identity in {self.directory} already. The bootstrap token was ignored."
                )
            try:
                self._move()
            except OSError as error:
                raise StorageError(
                    f"The new identity can't be moved to {self.directory} ({error.strerror}). Make room or check permissions, then "
                    "try again: it goes on from here."
                ) from None
        identity = read_identity(self.directory)
        self.discard()
        return identity, found.controller

    def _move(self) -> None:
        identity = read_identity(self.path)
        passphrase = self.path / ".passphrase"
        if passphrase.exists() and not self._passphrase_file().exists():
            files.atomic_write(self._passphrase_file(), passphrase.read_text("utf-8"), mode=0o400)
        keys = self.directory / "keys"
        files.make_private_directory(keys)
        for key in sorted((self.path / "keys").glob("*")):
            os.replace(key, keys / key.name)
        _sync(keys)
        staged, there = self.path / "allow_list.json", self.directory / "allow_list.json"
        if staged.exists():
            if there.exists():  # sealed by a key that is no more
                there.rename(self.directory / f"allow_list.before-{identity.device_id}.json")
            os.replace(staged, there)
        _sync(self.directory)
        os.replace(self.path / "identity.json", self.directory / "identity.json")
        _sync(self.directory)

    def discard(self) -> None:
        """Remove what is aside."""
        with contextlib.suppress(OSError):
            self._record.unlink()  # first: what is half-removed must not be taken up
        shutil.rmtree(self.path, ignore_errors=True)


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems can't
        files.sync_directory(path)
