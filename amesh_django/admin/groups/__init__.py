"""Groups of devices: their scopes, their members, and revoking all of them."""

from .admin import GroupAdmin

__all__ = ["GroupAdmin"]
