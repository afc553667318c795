"""A new identity in a folder of its own, which becomes the identity of the device when the controller answers (protocol.md §7).

The staging folder lies inside the device directory, and is sealed and encrypted like one. The acknowledgement of the controller is
recorded in it as one small file. After that, the rest is only carried out, by another process if this one is killed: the controller is
stored, the key is moved, and ``identity.json`` last of all. So the device has either no identity, or one with its key and its
controller.
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
class Acknowledgement:
    """The controller has acknowledged the token.

    Attributes:
        controller: the controller, as it will be stored.
        stored: True if it is in the allow list already.
    """

    controller: DeviceEntry
    stored: bool


class Trust:
    """The allow list that the controller of a new device is stored in: the file beside the identity.

    Django has a subclass for the list in the database.
    """

    def check(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """Raise now what :meth:`add` would raise, so that the token is not used for nothing.

        Raises:
            AllowListError: the list does not match its seal, or has no room for another controller.
        """

    def add(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """Store the controller, sealed by *device*. Calling it again with the same controller is allowed.

        Raises:
            AllowListError, KeyStoreError: it cannot be stored.
        """
        FileAllowList(device).add(controller)


class Staging:
    """The staging folder of a device directory.

    Args:
        directory: the device directory.
        environ: the environment, for the variables of protocol.md §10.
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
        """Return the environment for the staging folder: an existing passphrase is used, a new one stays in the folder."""
        inner = {name: value for name, value in self._environ.items() if name != TOKEN_VARIABLE}
        inner.pop("AMESH_PASSPHRASE_FILE", None)
        if not (self.path / ".passphrase").exists() and self._passphrase_file().exists():
            inner["AMESH_PASSPHRASE_FILE"] = str(self._passphrase_file())
        return inner

    def open(self) -> LocalDevice:
        """Return the staged device.

        Raises:
            DirectoryError, KeyStoreError: there is none, or it cannot be opened.
        """
        return LocalDevice(self.path, environ=self._inner_environ())

    def device(self, name: str) -> LocalDevice:
        """Return the staged device, and create it if there is none.

        A staged device of an earlier attempt is used again, because the controller may have stored it already.

        Args:
            name: friendly name of the device.

        Raises:
            StorageError, KeyStoreError: it cannot be created; nothing was written.
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
        """Record that the token was acknowledged: from now on, the staged device will become this device.

        Raises:
            StorageError: the record cannot be written.
        """
        files.atomic_write(self._record, files.json_text({"controller": controller.to_json(), "stored": stored}))

    def recorded(self) -> Acknowledgement | None:
        """Return the acknowledgement that :meth:`record` wrote, if the staged device has not become this device yet."""
        if not (self.path / "identity.json").exists():
            return None
        try:
            value: Any = json.loads(self._record.read_text("utf-8"))
            return Acknowledgement(DeviceEntry.from_json(value["controller"]), value["stored"] is True)
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):
            return None

    def settle(self, trust: Trust) -> tuple[Identity, DeviceEntry]:
        """Make the staged device this device. Continues where another process was interrupted.

        Raises:
            IdentityExists: this device has another identity by now; the staged device was removed.
            AmeshError: something cannot be written; the staged device is kept, and the next call continues with it.
        """
        found = self.recorded()
        if found is None:
            raise StorageError(
                f"The new identity in {self.path} was removed before it was used. Nothing was stored.",
                hint="To make a new token, run provision on the controller.",
            )
        if not found.stored:
            trust.add(self.open(), found.controller)
            self.record(found.controller, stored=True)
        with files.locked(self.directory):
            if (self.directory / "identity.json").exists():
                self.discard()
                raise IdentityExists(
                    f"There is already an identity in {self.directory}. The bootstrap token was ignored."
                )
            try:
                self._move()
            except OSError as error:
                raise StorageError(
                    f"The new identity cannot be moved to {self.directory} ({error.strerror}). It is kept in {self.path}.",
                    hint="Free disk space or check the permissions, then try again: enrollment continues from here.",
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
            if there.exists():  # sealed by a key that no longer exists
                there.rename(self.directory / f"allow_list.before-{identity.device_id}.json")
            os.replace(staged, there)
        _sync(self.directory)
        os.replace(self.path / "identity.json", self.directory / "identity.json")
        _sync(self.directory)

    def discard(self) -> None:
        """Remove the staging folder."""
        with contextlib.suppress(OSError):
            self._record.unlink()  # first: a folder that was removed in part must not be used
        shutil.rmtree(self.path, ignore_errors=True)


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        files.sync_directory(path)
