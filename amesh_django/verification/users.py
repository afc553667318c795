"""A user object for a device without a Django user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import VerifiedDevice


class DeviceUser:
    """Authenticated, active, without rights and without a database row; one for each device.

    Args:
        device: who signed the request.
    """

    is_authenticated = True
    is_anonymous = False
    is_active = True
    is_staff = False
    is_superuser = False

    def __init__(self, device: VerifiedDevice) -> None:
        self.device = device
        self.id = self.pk = self.username = device.device_id

    def __str__(self) -> str:
        return self.username

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceUser) and self.pk == other.pk

    def __hash__(self) -> int:
        return hash(self.pk)

    def get_username(self) -> str:
        """The device id."""
        return self.username

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        """Never: rights come from a mapped user, or from HasDevicePermission."""
        return False

    def has_perms(self, perm_list: Iterable[str], obj: Any = None) -> bool:
        """True for no permissions at all."""
        return not list(perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        """Never."""
        return False

    def get_all_permissions(self, obj: Any = None) -> set[str]:
        """None."""
        return set()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: there is no row."""
        raise TypeError("A DeviceUser has no database row. Map the device to a Django user to have one.")
