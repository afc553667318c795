"""Celery for the project: ``celery -A relay_project worker`` and ``beat``. Its settings are those of Django that begin with CELERY_."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_project.settings")

app = Celery("relay_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
