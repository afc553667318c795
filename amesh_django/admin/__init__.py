"""The Django admin: devices are looked at, mapped to users and revoked there; everything else goes through commands."""

from .changes import ChangeAdmin
from .devices import DeviceAdmin

__all__ = ["ChangeAdmin", "DeviceAdmin"]
