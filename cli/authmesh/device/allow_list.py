"""The interface of every allow list: a file in the device directory, a database table in a Django project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authmesh.protocol.allow_list import DeviceEntry, Role
from authmesh.protocol.errors import AllowListError, ControllerLimitReached, DeviceNotFound, Run


class AllowList(ABC):
    """The devices that this device trusts. Every change is atomic, sealed, and safe if other processes make changes too.

    Every method raises AllowListIntegrityFailure if the list does not match its seal. The list is then unchanged.

    Attributes:
        controller_limit: active controllers that the list may have (``maxControllers``).
        trouble: what is wrong with the list although the last :meth:`revoke` worked; None if nothing is.
    """

    controller_limit: int
    trouble: AllowListError | None = None

    @abstractmethod
    def read(self) -> list[DeviceEntry]:
        """Return all trusted devices, oldest first. Revoked devices are not included."""

    @abstractmethod
    def find(self, public_key: bytes) -> DeviceEntry | None:
        """Return the trusted device with this public key (33 bytes), or None."""

    @abstractmethod
    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        """Trust a device. If its key is already in the list, active or revoked, the entry replaces the old one.

        Args:
            entry: the device.
            replacing: device ID of a device to revoke in the same step.

        Raises:
            ControllerLimitReached: the list would have too many controllers.
            DeviceNotFound: *replacing* is not in the list.
        """

    @abstractmethod
    def add_all(self, entries: Sequence[DeviceEntry], *, even_revoked: bool = False) -> list[DeviceEntry]:
        """Trust several devices in one step, either all or none.

        Args:
            entries: the devices.
            even_revoked: True trusts devices again that were revoked in this list. Otherwise they stay revoked.

        Returns:
            the entries that were skipped because their devices were revoked in this list.

        Raises:
            ControllerLimitReached: the list would have too many controllers.
        """

    def revoke(self, device_id: str, *, reason: str = "", by: str = "") -> DeviceEntry:
        """Stop trusting a device, from the next request on, and return its entry.

        Args:
            device_id: ``am_…``
            reason: stored by lists that keep revoked devices.
            by: the person or program that revokes; stored like *reason*.

        Raises:
            DeviceNotFound: the device is not in the list.
        """
        entry, *_newer = self.revoke_all([device_id], reason=reason, by=by)
        return entry

    def revocable(self) -> list[DeviceEntry]:
        """Return the devices that :meth:`revoke` can revoke. A list that can do that although its seal is broken names them, too."""
        return self.read()

    @abstractmethod
    def revoke_all(self, device_ids: Sequence[str], *, reason: str = "", by: str = "") -> list[DeviceEntry]:
        """Stop trusting several devices in one step, either all or none. Return their entries, in the order of the IDs.

        The arguments and errors are those of :meth:`revoke`.
        """

    def update_permissions(
        self, device_id: str, update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> DeviceEntry:
        """Change the permissions of a device in one step, so that no concurrent change is lost. Return the new entry.

        Args:
            device_id: ``am_…``
            update: takes the current permissions (name → value, such as ``{"shell": True}``) and returns all new ones.

        Raises:
            DeviceNotFound: the device is not in the list.
        """
        (entry,) = self.update_permissions_of([device_id], update)
        return entry

    @abstractmethod
    def update_permissions_of(
        self, device_ids: Sequence[str], update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> list[DeviceEntry]:
        """Change the permissions of several devices in one step, either all or none. Return the new entries.

        The arguments and errors are those of :meth:`update_permissions`.
        """

    def set_permissions(self, device_id: str, permissions: Mapping[str, Any]) -> DeviceEntry:
        """Replace the permissions of a device. Return the new entry.

        Raises:
            DeviceNotFound: the device is not in the list.
        """
        return self.update_permissions(device_id, lambda before: permissions)

    def replace(self, device_id: str, entry: DeviceEntry) -> None:
        """Revoke one device and trust another one in its place, in one step.

        Raises:
            DeviceNotFound: *device_id* is not in the list.
            ControllerLimitReached: the list would still have too many controllers.
        """
        self.add(entry, replacing=device_id)

    def count(self, role: Role) -> int:
        """Return the number of trusted devices with this role."""
        return sum(entry.role == role for entry in self.read())

    def get(self, device_id: str) -> DeviceEntry:
        """Return the trusted device with this device ID.

        Raises:
            DeviceNotFound: the device is not in the list.
        """
        for entry in self.read():
            if entry.device_id == device_id:
                return entry
        raise not_found(device_id)


def not_found(device_id: str) -> DeviceNotFound:
    """Return the error for a device ID that is not in the list."""
    return DeviceNotFound(
        f"No trusted device has the device ID {device_id!r}.",
        hint=("To see the trusted devices, run ", Run("list"), "."),
    )


def limit_reached(limit: int, setting: str = "maxControllers in identity.json") -> ControllerLimitReached:
    """Return the error for a controller that would exceed the limit.

    Args:
        limit: controllers that the list may have.
        setting: name of the setting that has the limit.
    """
    return ControllerLimitReached(
        f"The allow list accepts {limit} controller{'s' if limit != 1 else ''} and would have more. Nothing was changed.",
        hint=("Replace or revoke a controller (to see them, run ", Run("list"), f"), or raise the limit ({setting})."),
    )
