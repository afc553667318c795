"""What people decide about devices that are in the list: who is approved, suspended, or reinstated, and what each may do.

:class:`~amesh_django.allow_list.DatabaseAllowList` has these methods. Each is one sealed change: all devices that it names, or none.
"""

from authmesh.device.grants import Grant

from .grants import Grants, GroupNotFound, is_group_name
from .notes import MAX_NOTE, Notes
from .revoking import REINSTATED, revoke_keys
from .rows import Decided, WrongState, any_row, is_active, on_entry, unrevoked_row, update_if_new
from .standing import MAX_ROWS, TRUSTED_AGAIN, Standing
from .suspending import suspend_beforehand

__all__ = [
    "MAX_NOTE",
    "MAX_ROWS",
    "REINSTATED",
    "TRUSTED_AGAIN",
    "Decided",
    "Decisions",
    "Grant",
    "GroupNotFound",
    "WrongState",
    "any_row",
    "is_active",
    "is_group_name",
    "on_entry",
    "revoke_keys",
    "suspend_beforehand",
    "unrevoked_row",
    "update_if_new",
]


class Decisions(Standing, Grants, Notes):
    """The methods with which people decide about devices."""
