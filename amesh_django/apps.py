"""The app: checks, triggers after ``migrate``, last-seen after requests."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.signals import request_finished, setting_changed
from django.db.models.signals import post_migrate


class AmeshConfig(AppConfig):
    """``amesh_django`` in ``INSTALLED_APPS``."""

    name = "amesh_django"
    label = "amesh"
    verbose_name = "amesh"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect what happens by itself."""
        from . import checks  # noqa: F401 -- registers the checks
        from .verification import activity

        post_migrate.connect(_after_migrate, sender=self, dispatch_uid="amesh_triggers")
        request_finished.connect(activity.flush_after_request, dispatch_uid="amesh_last_seen")
        setting_changed.connect(_setting_changed, dispatch_uid="amesh_settings")


def _after_migrate(using: str, **kwargs: Any) -> None:
    from .trust import snapshot, triggers

    triggers.install(using)
    snapshot.reset()


def _setting_changed(setting: str, **kwargs: Any) -> None:
    if setting in ("AMESH", "CACHES", "DATABASES", "DATABASE_ROUTERS"):
        from . import lifecycle

        lifecycle.reset()
