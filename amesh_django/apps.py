"""The app: connects the system checks and the receivers of Django's signals."""

from __future__ import annotations

import sys

from django.apps import AppConfig, apps
from django.core.signals import request_finished, request_started, setting_changed
from django.db.models.signals import post_migrate

from .signals import list_changed, request_refused


class AmeshConfig(AppConfig):
    """``amesh_django`` in ``INSTALLED_APPS``."""

    name = "amesh_django"
    label = "amesh"
    verbose_name = "amesh"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and connect the receivers."""
        # Imported here: these modules import models, which Django loads after this module.
        from . import (
            checks,  # noqa: F401 -- registers the checks
            lifecycle,
            log,
            metrics,
        )
        from .approvals import notices
        from .audit import refusals
        from .fleet import bell, freshness
        from .pairing import hosting
        from .usage import counting
        from .verification import activity, hooks

        if apps.is_installed("drf_spectacular"):
            from . import openapi  # noqa: F401 -- drf-spectacular finds the subclasses of its extensions

        post_migrate.connect(lifecycle.after_migrate, sender=self, dispatch_uid="amesh_triggers")
        request_started.connect(log.forget, dispatch_uid="amesh_log")
        request_finished.connect(activity.flush_after_request, dispatch_uid="amesh_last_seen")
        request_refused.connect(refusals.on_refused, dispatch_uid="amesh_audit")
        request_finished.connect(refusals.flush_after_request, dispatch_uid="amesh_audit")
        request_finished.connect(counting.flush_after_request, dispatch_uid="amesh_usage")
        counting.connect()
        list_changed.connect(bell.on_list_changed, dispatch_uid="amesh_bell")
        list_changed.connect(notices.on_list_changed, dispatch_uid="amesh_approvals")
        bell.connect(_ring)
        hosting.connect(_pair)
        metrics.connect()
        hooks.connect(freshness.ensure_fresh)
        setting_changed.connect(lifecycle.after_setting_changed, dispatch_uid="amesh_settings")


def _ring(pk: int) -> None:
    """Ask Celery to deliver to a server, if this process has loaded an app of Celery. Otherwise the sweeper finds the server."""
    if "celery" in sys.modules:
        from . import tasks

        tasks.ring(pk)


def _pair(pk: int) -> None:
    """Ask a worker of Celery to run a pairing. May raise."""
    from . import tasks

    tasks.send_pairing(pk)
