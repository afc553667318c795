"""The settings that the examples add to, by `startproject`, with the type of ``AMESH``."""

from pathlib import Path
from typing import Any

from amesh_django.conf import AmeshDict

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "x"
DEBUG = True
ALLOWED_HOSTS: list[str] = []
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "rest_framework",
    "amesh_django",
]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
ROOT_URLCONF = "mysite.urls"
USE_TZ = True
DATABASES: dict[str, dict[str, Any]] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CACHES: dict[str, dict[str, Any]] = {}
REST_FRAMEWORK: dict[str, Any] = {}
AMESH: AmeshDict = {
    "DIR": BASE_DIR / ".amesh",
    "PROTECT": ["/internal/"],
    "EXEMPT": ("/internal/health",),
    "MAX_CONTROLLERS": 50,
    "RELAY": {"TRUSTED_PROXIES": 1},
}
