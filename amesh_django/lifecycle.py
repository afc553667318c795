"""Forget in one call what this process remembers."""

from __future__ import annotations

from . import trust
from .conf import amesh_settings
from .verification import activity, lookup


def reset() -> None:
    """Forget settings, identity, keys, and everything that was verified with them. For tests, and after ``init``.

    The order is from the bottom up, so that whatever another thread reads again meanwhile is read from what is new.
    """
    amesh_settings.cache_clear()
    trust.reset()
    lookup.reset()
    activity.reset()
