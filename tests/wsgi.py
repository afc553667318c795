"""The WSGI application of the tests' project, for real servers."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
if os.environ.get("TEST_BROKER_URL"):
    from tests import celery_app  # noqa: F401 -- so that tasks go to its broker, as a project does in its __init__

application = get_wsgi_application()
