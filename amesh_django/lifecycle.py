"""What happens when the database was migrated or settings changed; and forgetting in one call what this process remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.migrations import Migration

from . import health, metrics, trust
from .audit import sweeping
from .conf import amesh_settings
from .fleet import freshness, signed_list
from .models import Device
from .trust import current, triggers
from .usage import counting
from .verification import activity, lookup


def reset() -> None:
    """Forget settings, identity, keys, and everything that was verified with them. For tests, and after ``init``.

    The order is from the bottom up, so that whatever another thread reads again meanwhile is read from what is new.
    """
    amesh_settings.cache_clear()
    trust.reset()
    lookup.reset()
    activity.reset()
    counting.reset()
    freshness.reset()
    signed_list.reset()
    sweeping.reset()
    health.reset()
    metrics.connect()
    counting.connect()


def after_migrate(using: str, plan: Sequence[tuple[Migration, bool]] = (), **kwargs: Any) -> None:
    """Install the triggers in a database that was migrated. Receiver of ``post_migrate``.

    After ``migrate amesh zero``, delete what Django and the triggers leave.
    """
    installed = triggers.install(using)
    label = Device._meta.app_label
    if not installed and any(undone and migration.app_label == label for migration, undone in plan):
        _delete_remains(label, using)
    current.reset()


def _delete_remains(label: str, using: str) -> None:
    """Delete the function of the triggers, content types, and permissions, if the tables are gone."""
    connection = connections[using]
    tables = set(connection.introspection.table_names())
    if Device._meta.db_table in tables:
        return
    triggers.drop_function(using)
    if apps.is_installed("django.contrib.contenttypes"):
        # The permissions, and who has them, go with the content types.
        kinds = apps.get_model("contenttypes", "ContentType")
        if kinds._meta.db_table in tables:
            kinds._default_manager.using(using).filter(app_label=label).delete()
            kinds._default_manager.clear_cache()


def after_setting_changed(setting: str, **kwargs: Any) -> None:
    """Call :func:`reset` if a test has changed a setting that amesh remembers. Receiver of ``setting_changed``."""
    if setting in ("AMESH", "CACHES", "DATABASES", "DATABASE_ROUTERS"):
        reset()
