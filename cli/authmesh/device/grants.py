"""What a device is given, or what is taken from it, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from authmesh.protocol.scopes import SCOPES


class Grant(NamedTuple):
    """Names that a device is given, or that are taken from it.

    Attributes:
        permissions: names of permissions.
        scopes: scopes of the device itself.
        groups: groups, which only a list in a database has.
    """

    permissions: Sequence[str] = ()
    scopes: Sequence[str] = ()
    groups: Sequence[str] = ()


NOTHING = Grant()


def granted(before: Mapping[str, Any], given: Grant, taken: Grant) -> dict[str, Any]:
    """Return the permissions of a device after a grant. Its other permissions, and members that are not known, are kept.

    Args:
        before: its permissions.
        given: what it gets.
        taken: what it loses.
    """
    permissions = {name: value for name, value in before.items() if name not in taken.permissions}
    permissions.update(dict.fromkeys(given.permissions, True))
    found = permissions.get(SCOPES)
    kept = [name for name in found if name not in taken.scopes] if isinstance(found, list) else []
    new = [name for name in given.scopes if name not in kept]
    if kept or new:
        permissions[SCOPES] = [*kept, *new]
    elif taken.scopes:
        permissions.pop(SCOPES, None)
    return permissions
