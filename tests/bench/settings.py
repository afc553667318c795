"""The Django settings of the bench: those of the tests, and the peers that are measured beside us."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "rest_framework.authtoken",
    "rest_framework_api_key",
    "amesh_django",
]
TEMPLATES: list[dict[str, Any]] = []
ROOT_URLCONF = "tests.bench.urls"
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
DATABASES["default"]["CONN_MAX_AGE"] = None  # persistent, as in production: none of the peers pays for connecting

AMESH: dict[str, Any] = {"MAX_CONTROLLERS": 1_000_000}

if os.environ.get("BENCH_JWT_KEY"):
    _pem = Path(os.environ["BENCH_JWT_KEY"])
    SIMPLE_JWT = {
        "ALGORITHM": "ES256",
        "SIGNING_KEY": _pem.read_text("ascii"),
        "VERIFYING_KEY": _pem.with_suffix(".pub").read_text("ascii"),
        "ACCESS_TOKEN_LIFETIME": dt.timedelta(hours=2),
    }
