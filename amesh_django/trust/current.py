"""The sealed lists of this process: one for each database alias."""

from __future__ import annotations

import os

from django.db import connections

from .database import database
from .integrity import SealedList

_lists: dict[str, SealedList] = {}


def current_list(using: str | None = None) -> SealedList:
    """Return the sealed list of this process.

    Do not keep it: after a change of the settings, this function returns another one.

    Args:
        using: database alias. Defaults to the database to which the list is written.
    """
    using = using or database()
    return _lists.get(using) or _lists.setdefault(using, SealedList(using))


def reset() -> None:
    """Forget what was verified, and with which keys. The next request verifies all rows again."""
    _lists.clear()
    for connection in connections.all(initialized_only=True):
        connection.__dict__.pop("_amesh_transient", None)


def _after_fork() -> None:
    for sealed in _lists.values():
        sealed.after_fork()


os.register_at_fork(after_in_child=_after_fork)
