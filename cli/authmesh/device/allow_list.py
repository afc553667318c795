"""The interface of an allow list, and the sealed file that implements it (protocol.md §5)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, Role, open_document, seal_document
from authmesh.protocol.errors import (
    AllowListError,
    AllowListIntegrityFailure,
    ControllerLimitReached,
    DeviceNotFound,
    StorageError,
)

from .directory import LocalDevice

T = TypeVar("T")

logger = logging.getLogger("amesh_django.allow_list")


def utc_now() -> dt.datetime:
    """The clock of the allow lists; tests hand over their own."""
    return dt.datetime.now(dt.UTC)


class AllowList(ABC):
    """Whom this device trusts. Every change is atomic, sealed, and safe beside other processes.

    ``controller_limit`` is how many active controllers there may be (``maxControllers``). Every method raises
    AllowListIntegrityFailure if the list does not match its seal, and changes nothing then.
    """

    controller_limit: int

    @abstractmethod
    def read(self) -> list[DeviceEntry]:
        """All trusted devices, oldest first; revoked ones are not among them."""

    @abstractmethod
    def find(self, public_key: bytes) -> DeviceEntry | None:
        """The trusted device of that key (33 bytes), or None."""

    @abstractmethod
    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        """Trust a device. One that is known already by its key is refreshed, whatever it was before.

        Args:
            entry: the device.
            replacing: device id of one that is revoked in the same step.

        Raises:
            ControllerLimitReached: it would be one controller too many.
            DeviceNotFound: *replacing* is not in the list.
        """

    @abstractmethod
    def add_all(self, entries: Sequence[DeviceEntry]) -> list[DeviceEntry]:
        """Trust many devices in one step, all or none; devices that were revoked here stay revoked.

        Returns:
            the entries that were skipped because the device had been revoked here.

        Raises:
            ControllerLimitReached: together they would be too many controllers.
        """

    @abstractmethod
    def revoke(self, device_id: str, *, reason: str = "", by: str = "") -> DeviceEntry:
        """Stop trusting a device, from the next request on. A store that keeps revoked devices keeps *reason* and *by*.

        Raises:
            DeviceNotFound: it is not in the list.
        """

    @abstractmethod
    def update_permissions(
        self, device_id: str, update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> DeviceEntry:
        """Make the permissions of a device what *update* makes of those that it has, in one step: none that another process
        withdraws at the same time comes back.

        Args:
            device_id: ``am_…``
            update: gets name → value, such as ``{"shell": True}``, and returns all that there shall be.

        Raises:
            DeviceNotFound: it is not in the list.
        """

    def set_permissions(self, device_id: str, permissions: Mapping[str, Any]) -> DeviceEntry:
        """Replace the permissions of a device.

        Raises:
            DeviceNotFound: it is not in the list.
        """
        return self.update_permissions(device_id, lambda before: permissions)

    def replace(self, device_id: str, entry: DeviceEntry) -> None:
        """Revoke one device and trust another in its place, in one step.

        Raises:
            DeviceNotFound: *device_id* is not in the list.
            ControllerLimitReached: there would still be too many controllers.
        """
        self.add(entry, replacing=device_id)

    def count(self, role: Role) -> int:
        """How many trusted devices have that role."""
        return sum(entry.role == role for entry in self.read())

    def get(self, device_id: str) -> DeviceEntry:
        """The trusted device of that id.

        Raises:
            DeviceNotFound: it is not in the list.
        """
        for entry in self.read():
            if entry.device_id == device_id:
                return entry
        raise not_found(device_id)


def not_found(device_id: str) -> DeviceNotFound:
    """The error for an id that is not in the list."""
    return DeviceNotFound(f"No trusted device has the id {device_id!r}. The command list shows those that are trusted.")


def limit_reached(limit: int) -> ControllerLimitReached:
    """The error for one controller too many."""
    return ControllerLimitReached(
        f"This device takes {limit} controller{'s' if limit != 1 else ''} (maxControllers) and has as many. Replace or "
        "revoke one, or raise the limit: maxControllers in identity.json, AMESH['MAX_CONTROLLERS'] in Django."
    )


class FileAllowList(AllowList):
    """The sealed file ``allow_list.json`` of a device directory.

    Args:
        device: whose list it is.
        clock: returns the time for ``updatedAt``.
    """

    def __init__(self, device: LocalDevice, *, clock: Callable[[], dt.datetime] = utc_now) -> None:
        self._device = device
        self._clock = clock
        self._path: Path = device.path / "allow_list.json"
        self.controller_limit = device.identity.controller_limit

    def _load(self) -> tuple[list[DeviceEntry], bool]:
        try:
            text = self._path.read_text("utf-8")
        except FileNotFoundError:
            return [], False
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise AllowListIntegrityFailure(
                f"{self._path} can't be read ({error.strerror}). Check owner and permissions.", reason="unreadable"
            ) from None
        try:
            return open_document(
                text, key_material=self._device.seal_secret(), device_id=self._device.identity.device_id
            )
        except AllowListIntegrityFailure as error:
            logger.critical("%s: %s (%s)", self._path, error, error.reason)
            raise

    def _save(self, entries: Sequence[DeviceEntry]) -> None:
        document = seal_document(
            entries,
            key_material=self._device.seal_secret(),
            device_id=self._device.identity.device_id,
            updated_at=self._clock(),
        )
        atomic_write(self._path, json_text(document))

    def _change(self, change: Callable[[list[DeviceEntry]], tuple[list[DeviceEntry], T]]) -> T:
        with locked(self._device.path):
            entries, _ = self._load()
            changed, result = change(entries)
            self._save(changed)
            return result

    def read(self) -> list[DeviceEntry]:
        """See :meth:`AllowList.read`. A list in an older form is written anew."""
        entries, stale = self._load()
        if stale:
            try:
                self._change(lambda current: (current, None))
            except (StorageError, AllowListError) as error:
                logger.warning("The allow list has an older form and could not be written anew: %s", error)
        return entries

    def find(self, public_key: bytes) -> DeviceEntry | None:
        """See :meth:`AllowList.find`."""
        return next((entry for entry in self.read() if entry.public_key == public_key), None)

    def _with(self, entries: list[DeviceEntry], entry: DeviceEntry) -> list[DeviceEntry]:
        others = [other for other in entries if other.public_key != entry.public_key]
        if entry.role == CONTROLLER:
            if sum(other.role == CONTROLLER for other in others) >= self.controller_limit:
                raise limit_reached(self.controller_limit)
        return [*others, entry]

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        """See :meth:`AllowList.add`."""

        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], None]:
            if replacing is not None:
                entries = _without(entries, replacing)
            return self._with(entries, entry), None

        self._change(change)

    def add_all(self, entries: Sequence[DeviceEntry]) -> list[DeviceEntry]:
        """See :meth:`AllowList.add_all`. The file keeps no revoked devices, so nothing is skipped."""

        def change(current: list[DeviceEntry]) -> tuple[list[DeviceEntry], list[DeviceEntry]]:
            new = {entry.public_key: entry for entry in entries}
            merged = [*(entry for entry in current if entry.public_key not in new), *new.values()]
            if sum(entry.role == CONTROLLER for entry in merged) > self.controller_limit:
                raise limit_reached(self.controller_limit)
            return merged, []

        return self._change(change)

    def revoke(self, device_id: str, *, reason: str = "", by: str = "") -> DeviceEntry:
        """See :meth:`AllowList.revoke`. The entry leaves the file, as the reference does it."""

        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], DeviceEntry]:
            rest = _without(entries, device_id)
            return rest, next(entry for entry in entries if entry.device_id == device_id)

        return self._change(change)

    def update_permissions(
        self, device_id: str, update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> DeviceEntry:
        """See :meth:`AllowList.update_permissions`."""

        def change(entries: list[DeviceEntry]) -> tuple[list[DeviceEntry], DeviceEntry]:
            _without(entries, device_id)
            changed = [
                dataclasses.replace(e, permissions=dict(update(e.permissions))) if e.device_id == device_id else e
                for e in entries
            ]
            return changed, next(entry for entry in changed if entry.device_id == device_id)

        return self._change(change)


def _without(entries: list[DeviceEntry], device_id: str) -> list[DeviceEntry]:
    rest = [entry for entry in entries if entry.device_id != device_id]
    if len(rest) == len(entries):
        raise not_found(device_id)
    return rest
