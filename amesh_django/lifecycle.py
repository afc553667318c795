"""What this process remembers, forgotten in one call."""

from __future__ import annotations

from .conf import amesh_settings
from .trust import keys, owner, rollback, snapshot
from .verification import activity, lookup


def reset() -> None:
    """Forget identity, keys, settings, and all that was verified with them. For tests, and after ``init``."""
    amesh_settings.cache_clear()  # from the bottom up: what is read again meanwhile is read from what is new
    owner.reset()
    keys.reset()
    snapshot.reset()
    rollback.reset()
    lookup.reset()
    activity.reset()
