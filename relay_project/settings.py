"""The settings of the shipped project. Everything comes from the environment and has a safe default.

DJANGO_DATA_DIR: folder of the SQLite database and the secret key; ``.data`` beside manage.py.
DJANGO_SECRET_KEY: else one is made and kept in the data folder, mode 0600.
DJANGO_DEBUG: 1 for development; off.
DJANGO_ALLOWED_HOSTS: names under which this server is reached, with commas; this machine only.
DJANGO_HTTPS: whether people reach it by https, so that cookies never go without; on as soon as it is reached from elsewhere.
DJANGO_BEHIND_PROXY: 1 where a proxy speaks https for this server and always sets X-Forwarded-Proto; off.
DJANGO_DB_ENGINE, _NAME, _USER, _PASSWORD, _HOST, _PORT: another database than SQLite.
REDIS_URL: cache and nonces in Redis, for which more than one process asks, and the relay of several processes; local memory.
AUTH_MESH_DIR: device directory of this server; ``~/.amesh``.
AMESH_SEAL_KEY_FILE: the seal secret that several hosts share; this server's own key.
AMESH_TRUST_PROXY: how many proxies in front of the relay are to be believed (X-Forwarded-For); none.
AMESH_RELAY_MAX_SESSIONS, AMESH_RELAY_MATCH_SECONDS and so on: each number of AMESH["RELAY"]; those of the protocol.
AMESH_RELAY_ALLOWED_ORIGINS: web pages that may connect to the relay, with commas; none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from amesh_django.relay.conf import RelaySettings
from relay_project.environment import flag, numbers, private_directory, secret_key, words

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = private_directory(Path(os.environ.get("DJANGO_DATA_DIR") or BASE_DIR / ".data").expanduser())

SECRET_KEY = secret_key(DATA_DIR / "secret_key")
DEBUG = flag("DJANGO_DEBUG")

_HERE = "localhost,127.0.0.1,[::1]"
ALLOWED_HOSTS = words("DJANGO_ALLOWED_HOSTS", _HERE)
CSRF_TRUSTED_ORIGINS = words("DJANGO_CSRF_TRUSTED_ORIGINS")

HTTPS = flag("DJANGO_HTTPS", default=not DEBUG and not set(ALLOWED_HOSTS) <= set(_HERE.split(",")))
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 30 * 24 * 3600 if HTTPS else 0
if flag("DJANGO_BEHIND_PROXY"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = HTTPS

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "amesh_django",
    "relay_project",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    # Before whatever might read the body.
    "amesh_django.middleware.AmeshMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "relay_project.urls"
WSGI_APPLICATION = "relay_project.wsgi.application"
ASGI_APPLICATION = "relay_project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
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

_ENGINE = os.environ.get("DJANGO_DB_ENGINE") or "django.db.backends.sqlite3"
DATABASES: dict[str, dict[str, Any]] = {
    "default": {"ENGINE": _ENGINE, "NAME": os.environ.get("DJANGO_DB_NAME") or str(DATA_DIR / "db.sqlite3")}
}
if _ENGINE.endswith("sqlite3"):
    # Readers and the one writer do not wait for each other, and a transaction that will write says so when it begins.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
else:
    DATABASES["default"] |= {
        name: os.environ.get(f"DJANGO_DB_{name}", "") for name in ("USER", "PASSWORD", "HOST", "PORT")
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if os.environ.get("REDIS_URL"):
    CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["REDIS_URL"]}}
else:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

AMESH: dict[str, Any] = {
    "DIR": os.environ.get("AUTH_MESH_DIR") or None,
    "SEAL_KEY_FILE": os.environ.get("AMESH_SEAL_KEY_FILE") or None,
    "PROTECT": ["/protected/"],
    "RELAY": {
        **numbers("AMESH_RELAY_", RelaySettings),
        "ALLOWED_ORIGINS": words("AMESH_RELAY_ALLOWED_ORIGINS"),
    },
}
REST_FRAMEWORK = {"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    # Not all at INFO: HTTP clients log whole URLs there, and a query may hold secrets.
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"amesh_django": {"level": "INFO"}, "relay_project": {"level": "INFO"}},
}
