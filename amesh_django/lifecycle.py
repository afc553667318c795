"""Forget in one call what this process remembers."""

from __future__ import annotations

from typing import Any

from . import health, metrics, trust
from .conf import amesh_settings
from .trust import current, triggers
from .verification import activity, lookup


def reset() -> None:
    """Forget settings, identity, keys, and everything that was verified with them. For tests, and after ``init``.

    The order is from the bottom up, so that whatever another thread reads again meanwhile is read from what is new.
    """
    amesh_settings.cache_clear()
    trust.reset()
    lookup.reset()
    activity.reset()
    health.reset()
    metrics.connect()


def after_migrate(using: str, **kwargs: Any) -> None:
    """Install the triggers in a database that was migrated. Receiver of ``post_migrate``."""
    triggers.install(using)
    current.reset()


def after_setting_changed(setting: str, **kwargs: Any) -> None:
    """Call :func:`reset` if a test has changed a setting that amesh remembers. Receiver of ``setting_changed``."""
    if setting in ("AMESH", "CACHES", "DATABASES", "DATABASE_ROUTERS"):
        reset()
