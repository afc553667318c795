"""The Celery application of the tests' project, for a real worker and beat."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
application = Celery("tests")
application.config_from_object("django.conf:settings", namespace="CELERY")
application.autodiscover_tasks()
