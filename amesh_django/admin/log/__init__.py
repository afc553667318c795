"""The audit log in the admin: :mod:`.admin` is its model admin."""

from .admin import EventAdmin

__all__ = ["EventAdmin"]
