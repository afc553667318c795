"""The allow list of a device directory: one sealed file (protocol.md §5)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from authmesh.files.clock import utc_now
from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, open_document, seal_document
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, Hint, Run, StorageError

from .allow_list import AllowList, limit_reached, not_found
from .directory import LocalDevice

T = TypeVar("T")

logger = logging.getLogger("amesh_django.allow_list")


class FileAllowList(AllowList):
    """The sealed file ``allow_list.json`` of a device directory.

    Args:
        device: the device that the list belongs to.
        clock: returns the time for ``updatedAt``.
    """

    def __init__(self, device: LocalDevice, *, clock: Callable[[], dt.datetime] = utc_now) -> None:
        self._device = device
        self._clock = clock
        self._path: Path = device.path / "allow_list.json"
        self.controller_limit = device.identity.controller_limit

    def _load(self) -> tuple[list[DeviceEntry], bool]:
        """Return the entries, and True if the file has an older form."""
        try:
            text = self._path.read_text("utf-8")
        except FileNotFoundError:
            return [], False
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise AllowListIntegrityFailure(
                f"{self._path} cannot be read ({error.strerror}).",
                hint="Check its owner and permissions.",
                reason="unreadable",
            ) from None
        try:
            return open_document(
                text, key_material=self._device.seal_secret(), device_id=self._device.identity.device_id
            )
        except AllowListIntegrityFailure as error:
            logger.critical("%s: %s (%s)", self._path, error, error.reason)
            raise AllowListIntegrityFailure(error.message, hint=self._without_backup(), reason=error.reason) from None

    def _without_backup(self) -> Hint:
        return (
            f"Restore {self._path} from a backup. If there is none, rename the file: the list is empty then. Pair again with each device "
            "that you trust, or trust it with ",
            Run("trust"),
            ", after you have compared its device ID with the one that it shows.",
        )

    def _save(self, entries: Sequence[DeviceEntry]) -> None:
        document = seal_document(
            entries,
            key_material=self._device.seal_secret(),
            device_id=self._device.identity.device_id,
            updated_at=self._clock(),
        )
        atomic_write(self._path, json_text(document))

    def _change(self, change: Callable[[list[DeviceEntry]], tuple[list[DeviceEntry], T]]) -> T:
        self._device.seal_secret()  # unlocking the key may take a second: not while others wait for the lock
        with locked(self._device.path):
            entries, _ = self._load()
            changed, result = change(entries)
            self._save(changed)
            return result

    def read(self) -> list[DeviceEntry]:
        """Return all trusted devices, oldest first. A list in an older form is rewritten in the current one."""
        entries, is_old_form = self._load()
        if is_old_form:
            try:
                self._change(lambda current: (current, None))
            except (StorageError, AllowListError) as error:
                logger.warning("The allow list has an older form and could not be rewritten: %s", error)
        return entries

    def find(self, public_key: bytes) -> DeviceEntry | None:
        return next((entry for entry in self.read() if entry.public_key == public_key), None)

    def _with(self, entries: list[DeviceEntry], entry: DeviceEntry) -> list[DeviceEntry]:
        others = [other for other in entries if other.public_key != entry.public_key]
        if entry.role == CONTROLLER:
            if sum(other.role == CONTROLLER for other in others) >= self.controller_limit:
                raise limit_reached(self.controller_limit)
        return [*others, entry]

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], None]:
            if replacing is not None:
                entries = _without(entries, replacing)
            return self._with(entries, entry), None

        self._change(change)

    def add_all(self, entries: Sequence[DeviceEntry], *, even_revoked: bool = False) -> list[DeviceEntry]:
        """Trust several devices in one step. No entry is skipped, because the file keeps no revoked devices."""

        def change(current: list[DeviceEntry]) -> tuple[list[DeviceEntry], list[DeviceEntry]]:
            new = {entry.public_key: entry for entry in entries}
            merged = [*(entry for entry in current if entry.public_key not in new), *new.values()]
            if sum(entry.role == CONTROLLER for entry in merged) > self.controller_limit:
                raise limit_reached(self.controller_limit)
            return merged, []

        return self._change(change)

    def revoke_all(self, device_ids: Sequence[str], *, reason: str = "", by: str = "") -> list[DeviceEntry]:
        """Remove devices from the file in one step, as the reference does, and return their entries."""

        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], list[DeviceEntry]]:
            revoked = [_named(entries, device_id) for device_id in device_ids]
            return [entry for entry in entries if entry not in revoked], revoked

        return self._change(change)

    def rename(self, device_id: str, name: str) -> DeviceEntry:
        """Give a device another friendly name. Return the new entry.

        Raises:
            DeviceNotFound: the device is not in the list.
        """

        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], DeviceEntry]:
            new = dataclasses.replace(_named(entries, device_id), friendly_name=name)
            return [new if entry.device_id == device_id else entry for entry in entries], new

        return self._change(change)

    def update_permissions_of(
        self, device_ids: Sequence[str], update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> list[DeviceEntry]:
        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], list[DeviceEntry]]:
            new = {
                before.device_id: dataclasses.replace(before, permissions=dict(update(before.permissions)))
                for before in (_named(entries, device_id) for device_id in device_ids)
            }
            return [new.get(entry.device_id, entry) for entry in entries], list(new.values())

        return self._change(change)


def _named(entries: list[DeviceEntry], device_id: str) -> DeviceEntry:
    for entry in entries:
        if entry.device_id == device_id:
            return entry
    raise not_found(device_id)


def _without(entries: list[DeviceEntry], device_id: str) -> list[DeviceEntry]:
    gone = _named(entries, device_id)
    return [entry for entry in entries if entry is not gone]
