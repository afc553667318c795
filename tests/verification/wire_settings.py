"""The settings of the servers that the wire tests start. `tests.verification.wire` sets the variables that differ."""

from __future__ import annotations

import os
from typing import Any

from tests.settings import *  # noqa: F403 -- the same project, with the middleware on
from tests.settings import CACHES, DATABASES, MIDDLEWARE

MIDDLEWARE = [
    "tests.verification.wire_views.Labeled",
    "tests.verification.wire_views.Meddler",
    "amesh_django.middleware.AmeshMiddleware",
    *MIDDLEWARE,
]
AMESH: dict[str, Any] = {
    "DIR": os.environ.get("TEST_AMESH_DIR"),
    "PROTECT": ["/middleware/"],
    "EXEMPT": ["/middleware/open"],
    "MAX_BODY_BYTES": int(os.environ.get("TEST_AMESH_MAX_BODY", 256 * 1024 * 1024)),
    "METRICS": "PROMETHEUS_MULTIPROC_DIR" in os.environ,
}
if os.environ.get("TEST_STRIPPED_PREFIX"):
    AMESH["PROXY_STRIPPED_PREFIX"] = os.environ["TEST_STRIPPED_PREFIX"]
if os.environ.get("TEST_ADDED_PREFIX"):
    AMESH["PROXY_ADDED_PREFIX"] = os.environ["TEST_ADDED_PREFIX"]
if "sqlite" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["OPTIONS"] = {"timeout": 20}
if os.environ.get("TEST_REDIS_URL"):
    # A server that is down must be detected at once, not after the timeout of the operating system.
    CACHES["default"]["OPTIONS"] = {"SOCKET_CONNECT_TIMEOUT": 2, "SOCKET_TIMEOUT": 2}
FILE_UPLOAD_TEMP_DIR = os.environ.get("TEST_UPLOAD_DIR")
FORCE_SCRIPT_NAME = os.environ.get("TEST_SCRIPT_NAME")
DJANGO_REDIS_IGNORE_EXCEPTIONS = os.environ.get("TEST_REDIS_IGNORE_EXCEPTIONS") == "1"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{levelname} {name} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
