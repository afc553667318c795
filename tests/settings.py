"""The Django settings of the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "tests-only-" + "0" * 50
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
WSGI_APPLICATION = "tests.wsgi.application"
ASGI_APPLICATION = "tests.asgi.application"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "amesh_django",
]
# A theme of the admin replaces the templates of Django's own admin, so it comes first.
if os.environ.get("TEST_ADMIN_THEME"):
    INSTALLED_APPS.insert(0, os.environ["TEST_ADMIN_THEME"])
    JAZZMIN_SETTINGS = {"use_google_fonts_cdn": False}
    JAZZMIN_UI_TWEAKS = {"default_theme_mode": "auto"}
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
if os.environ.get("TEST_CSP"):
    MIDDLEWARE.insert(0, "tests.support.csp.middleware")
    TEMPLATES[0]["OPTIONS"]["context_processors"].append("tests.support.csp.nonce")
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# In memory for pytest; `tests.support.databases` hands a server process the file or the PostgreSQL it is to use.
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": os.environ.get("TEST_DB_ENGINE", "django.db.backends.sqlite3"),
        "NAME": os.environ.get("TEST_DB_NAME", ":memory:"),
        "USER": os.environ.get("TEST_DB_USER", ""),
        "HOST": os.environ.get("TEST_DB_HOST", ""),
        "PORT": os.environ.get("TEST_DB_PORT", ""),
    }
}
if os.environ.get("TEST_DB_POOL"):
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 1, "max_size": int(os.environ["TEST_DB_POOL"])}}
if os.environ.get("TEST_REDIS_URL"):
    _redis = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["TEST_REDIS_URL"]}
    CACHES = {"default": _redis, "amesh": _redis}
else:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

AMESH: dict[str, Any] = {}
if os.environ.get("TEST_SEAL_KEY_FILE"):
    AMESH["SEAL_KEY_FILE"] = os.environ["TEST_SEAL_KEY_FILE"]
if os.environ.get("TEST_AMESH_URL"):
    AMESH["URL"] = os.environ["TEST_AMESH_URL"]
if os.environ.get("TEST_SEAL_KEY_FILES"):  # separated by commas; "own" is the key of this server
    AMESH["SEAL_KEY_FILES"] = [None if path == "own" else path for path in os.environ["TEST_SEAL_KEY_FILES"].split(",")]
AMESH |= json.loads(os.environ.get("TEST_AMESH", "{}"))
if os.environ.get("TEST_BROKER_URL"):  # see tests/celery_app.py
    CELERY_BROKER_URL = os.environ["TEST_BROKER_URL"]
    CELERY_TASK_ROUTES = {"amesh.*": {"queue": "amesh"}}
    CELERY_BEAT_SCHEDULE = {
        "amesh.sweep": {"task": "amesh.sweep", "schedule": 1.0, "options": {"queue": "amesh", "expires": 1}}
    }
