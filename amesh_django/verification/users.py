"""The user as whom a device acts: the Django user that it is mapped to, or an object without a row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.db import DatabaseError, InterfaceError
from django.db.models.manager import EmptyManager

from amesh_django.conf import amesh_settings
from authmesh.protocol.errors import AllowListUnavailable, Unauthorized

from .types import VerifiedDevice

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser


def mapped_user(device: VerifiedDevice) -> AbstractBaseUser | None:
    """Return the Django user that a device is mapped to, or None if there is none.

    Args:
        device: the device that signed the request.

    Raises:
        Unauthorized: the user is not active, or does not exist any more.
        AllowListUnavailable: the database is down.
    """
    if device.user_id is None:
        return None
    try:
        user = get_user_model()._default_manager.filter(pk=device.user_id).first()
    except (DatabaseError, InterfaceError) as error:
        raise AllowListUnavailable(
            "The user that the device is mapped to cannot be read: the database is down.",
            hint="Check that the database runs.",
            detail=type(error).__name__,
            device_id=device.device_id,
            device_name=device.friendly_name,
        ) from error
    if user is None or not user.is_active:
        raise Unauthorized(reason="user_inactive", device_id=device.device_id, device_name=device.friendly_name)
    return user


_NO_ROW = "A DeviceUser has no database row, so nothing was changed. Map the device to a Django user."


class DeviceUser:
    """A user who is active, but has no permissions and no database row.

    ``is_authenticated`` is ``AMESH["DEVICES_ARE_USERS"]``. By default it is False, so that views for people (``IsAuthenticated``,
    ``login_required``) reject devices, and only views that name devices accept them.

    It has every attribute of Django's AnonymousUser.

    Args:
        device: the device that signed the request.

    Attributes:
        id, pk, username: the device ID.
    """

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

    @property
    def is_authenticated(self) -> bool:
        """Return True if the settings say that devices are users."""
        return amesh_settings().DEVICES_ARE_USERS

    @property
    def is_anonymous(self) -> bool:
        """Return the opposite of ``is_authenticated``."""
        return not self.is_authenticated

    def get_username(self) -> str:
        """Return the device ID."""
        return self.username

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        """Return False: permissions come from a mapped user, or from HasDevicePermission."""
        return False

    def has_perms(self, perm_list: Iterable[str], obj: Any = None) -> bool:
        """Return True only if no permission is asked for."""
        return not list(perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        """Return False."""
        return False

    def get_all_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    def get_user_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    def get_group_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    async def ahas_perm(self, perm: str, obj: Any = None) -> bool:
        """Return False."""
        return False

    async def ahas_perms(self, perm_list: Iterable[str], obj: Any = None) -> bool:
        """Return True only if no permission is asked for."""
        return self.has_perms(perm_list, obj)

    async def ahas_module_perms(self, app_label: str) -> bool:
        """Return False."""
        return False

    async def aget_all_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    async def aget_user_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    async def aget_group_permissions(self, obj: Any = None) -> set[str]:
        """Return the empty set."""
        return set()

    @property
    def groups(self) -> EmptyManager[Group]:
        """Return a manager without groups."""
        return EmptyManager(Group)

    @property
    def user_permissions(self) -> EmptyManager[Permission]:
        """Return a manager without permissions."""
        return EmptyManager(Permission)

    _groups, _user_permissions = groups, user_permissions

    def __int__(self) -> int:
        raise TypeError("A DeviceUser has no number. Map the device to a Django user, or use request.amesh.device_id.")

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raise TypeError: there is no row to save."""
        raise TypeError(_NO_ROW)

    def delete(self) -> None:
        """Raise TypeError: there is no row to delete."""
        raise TypeError(_NO_ROW)

    def set_password(self, raw_password: str | None) -> None:
        """Raise TypeError: there is no row to change."""
        raise TypeError(_NO_ROW)

    def check_password(self, raw_password: str) -> bool:
        """Return False: a device has no password."""
        return False
