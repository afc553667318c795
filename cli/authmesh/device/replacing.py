"""The replacement of this device's key, in ``rotation.json`` of the device directory, until every server has accepted the new one.

Both keys are in the key store from the first step to the last. ``identity.json`` names the old one until :func:`move`, and the new one
after it. A process that is killed leaves the file, and the next one continues.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from authmesh import keystore
from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.keystore.tpm.blob import parse_key_file
from authmesh.protocol.allow_list import open_document, seal_document
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AllowListIntegrityFailure, DirectoryError, KeyStoreError, Run, StorageError
from authmesh.protocol.keys import device_id

from .directory import LocalDevice, delete_key, read_identity
from .identity import Identity
from .passphrase import find_passphrases

FILE = "rotation.json"
FILE_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Replacement:
    """A replacement that is under way.

    Attributes:
        old: the identity with the old key.
        new: the identity with the new key.
        accepted: device IDs of the servers that have accepted the new key.
        moving: True from the moment at which :func:`move` begins.
    """

    old: Identity
    new: Identity
    accepted: frozenset[str] = field(default_factory=frozenset)
    moving: bool = False


def read_replacement(path: Path) -> Replacement | None:
    """Return the replacement that is under way, or None.

    Raises:
        DirectoryError: the file cannot be read, or is damaged.
    """
    file = path / FILE
    try:
        value = json.loads(file.read_text("utf-8"))
        old, new = (Identity.from_text(json.dumps(value[name])) for name in ("old", "new"))
        found = Replacement(old, new, frozenset(map(str, value["accepted"])), value["moving"] is True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DirectoryError(f"{file} cannot be read ({error.strerror}).", hint="Check its permissions.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DirectoryError(f"{file} is damaged.", hint="Restore it from a backup. It names both keys.") from None
    return found if _is_of_this_device(path, found) else None


def _is_of_this_device(path: Path, replacement: Replacement) -> bool:
    """Return False if ``init --force`` has made another identity since: its key must not be replaced by an old one."""
    try:
        return read_identity(path).public_key in (replacement.old.public_key, replacement.new.public_key)
    except DirectoryError:
        return True


def write_replacement(path: Path, replacement: Replacement) -> Replacement:
    """Store the state of a replacement, and return it.

    Raises:
        StorageError: writing failed; the old state is unchanged.
    """
    value = {
        "version": FILE_VERSION,
        "old": replacement.old.to_json(),
        "new": replacement.new.to_json(),
        "accepted": sorted(replacement.accepted),
        "moving": replacement.moving,
    }
    atomic_write(path / FILE, json_text(value))
    return replacement


def accept(path: Path, replacement: Replacement, server: str) -> Replacement:
    """Record that a server has accepted the new key, and return the state. Several processes may do that at the same time.

    Args:
        path: the device directory.
        replacement: the state that this process knows.
        server: device ID of the server.

    Raises:
        StorageError: writing failed; the old state is unchanged.
        AllowListBusy: another process holds the lock of the directory.
    """
    accepted = replacement.accepted | {server}
    with locked(path):
        found = read_replacement(path)
        if found is None or found.new != replacement.new:  # another process has finished
            return dataclasses.replace(replacement, accepted=accepted)
        return write_replacement(path, dataclasses.replace(found, accepted=found.accepted | accepted))


def begin(path: Path, *, now: dt.datetime, environ: Mapping[str, str] = os.environ) -> Replacement:
    """Make a new key beside the old one, in the same key store, and store both names. Return an earlier replacement if there is one.

    Raises:
        DirectoryError, KeyStoreError: there is no identity, or no key can be made; nothing was changed.
        AllowListBusy: another process holds the lock of the directory.
    """
    with locked(path):
        found = read_replacement(path)
        if found is not None:
            return found
        old = read_identity(path)
        if _has_pin(path, old):
            raise KeyStoreError(
                "The key of this device has a PIN, and a key that replaces it by itself could have none. Nothing was changed.",
                hint=("Make a new identity with a PIN: ", Run("init", "--name NAME --force --tpm-pin"), "."),
            )
        store = keystore.open_key_store(
            old.storage_backend,
            folder=path / "keys",
            passphrase=lambda: find_passphrases(path, environ),
            environ=environ,
        )
        alias, public_key = store.create()
        new = dataclasses.replace(
            old, device_id=device_id(public_key), key_alias=alias, public_key=public_key, created_at=format_time(now)
        )
        try:
            return write_replacement(path, Replacement(old, new))
        except StorageError:
            store.delete(alias)
            raise


def _has_pin(path: Path, identity: Identity) -> bool:
    if identity.storage_backend != "tpm2":
        return False
    try:
        return parse_key_file((path / "keys" / f"{identity.key_alias}.tpm").read_text("utf-8")).has_pin
    except (OSError, UnicodeDecodeError):  # signing will say what is wrong
        return False


def move(path: Path, replacement: Replacement, *, now: dt.datetime) -> Replacement:
    """Make the new key the key of this device: the allow list is sealed by it, then ``identity.json`` names it.

    Raises:
        AllowListIntegrityFailure: the allow list is sealed by neither key; nothing was changed.
        DirectoryError, KeyStoreError: a file cannot be written, or a key cannot be unlocked. The next call continues.
    """
    moved = dataclasses.replace(replacement, moving=True)
    if read_identity(path).public_key == replacement.new.public_key:
        return moved  # identity.json is written last
    devices = [LocalDevice(path, identity=one) for one in (replacement.new, replacement.old)]
    for device in devices:
        device.seal_secret()  # unlocking a key may take a second: not while others wait for the lock
    with locked(path):
        found = read_replacement(path)
        if found is None or found.new != replacement.new:  # another process has finished
            return moved
        moved = write_replacement(path, dataclasses.replace(found, moving=True))
        _reseal(path / "allow_list.json", devices[0], devices[1], now)
        atomic_write(path / "identity.json", json_text(replacement.new.to_json()))
    return moved


def recover(path: Path, *, now: dt.datetime) -> Replacement | None:
    """Complete a move to the new key that was interrupted, and return the replacement that is under way, or None.

    Raises:
        AmeshError: as for :func:`read_replacement` and :func:`move`.
    """
    found = read_replacement(path)
    return move(path, found, now=now) if found is not None and found.moving else found


def _reseal(file: Path, new: LocalDevice, old: LocalDevice, now: dt.datetime) -> None:
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return
    failure: AllowListIntegrityFailure | None = None
    for device in (new, old):
        secret, owner = device.seal_secret(), device.identity.device_id
        try:
            entries, _ = open_document(text, key_material=secret, device_id=owner)
        except AllowListIntegrityFailure as error:
            failure = error
            continue
        if device is old:
            document = seal_document(
                entries, key_material=new.seal_secret(), device_id=new.identity.device_id, updated_at=now
            )
            atomic_write(file, json_text(document))
        return
    if failure is not None:
        raise failure


def end(path: Path, replacement: Replacement, *, environ: Mapping[str, str] = os.environ) -> None:
    """Delete the old key, after every server has accepted the new one and the device has moved.

    Raises:
        AllowListBusy: another process holds the lock of the directory.
        StorageError: the state cannot be removed; the next call continues.
    """
    with locked(path):
        found = read_replacement(path)
        if found is None or found.new != replacement.new:  # another process has finished
            return
        delete_key(path, replacement.old, environ)
        try:
            (path / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path / FILE} cannot be removed ({error.strerror}).", hint="Check the permissions of the folder."
            ) from None
