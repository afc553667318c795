"""The WSGI application of a site, at which a test may replace the key of a device at each step of many."""

from __future__ import annotations

import importlib

from tests.wsgi import application

__all__ = ["application"]

# Imported after Django is set up.
importlib.import_module("amesh_django.enrollment.rotating").MAX_PER_HOUR = 1000
