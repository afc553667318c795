"""What this process remembers, forgotten in one call."""

from __future__ import annotations

from typing import Any

from .conf import amesh_settings
from .trust import keys, owner, rollback, snapshot, triggers
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


def after_migrate(using: str, **kwargs: Any) -> None:
    """Install the triggers in a database that was migrated. Receiver of ``post_migrate``."""
    triggers.install(using)
    snapshot.reset()


def after_setting_changed(setting: str, **kwargs: Any) -> None:
    """Call :func:`reset` if a test has changed a setting that amesh remembers. Receiver of ``setting_changed``."""
    if setting in ("AMESH", "CACHES", "DATABASES", "DATABASE_ROUTERS"):
        reset()
