"""The settings of the project. All of them come from environment variables with safe defaults.

DJANGO_DATA_DIR: folder of the SQLite database and the secret key. Defaults to ``.data`` next to manage.py.
DJANGO_SECRET_KEY: secret key. Defaults to a key that is generated and kept in the data folder, with mode 0600.
DJANGO_DEBUG: 1 for development. Defaults to 0.
DJANGO_ALLOWED_HOSTS: host names of this server, separated by commas. Defaults to those of this machine only.
DJANGO_CSRF_TRUSTED_ORIGINS: origins whose forms the admin accepts, such as https://relay.example, separated by commas. Defaults to none.
DJANGO_HTTPS: 1 if people use https, so that cookies are never sent without it. Defaults to 1 if other host names are allowed.
DJANGO_BEHIND_PROXY: 1 if a proxy speaks https for this server and always sets X-Forwarded-Proto. Defaults to 0.
DJANGO_DB_ENGINE, _NAME, _USER, _PASSWORD, _HOST, _PORT: a database other than SQLite.
REDIS_URL: Redis for the cache, the nonces and the relay; needed for more than one process. Defaults to local memory.
    Set appendonly to yes and maxmemory-policy to noeviction in its configuration: `manage.py check --deploy` reports it.
CELERY_BROKER_URL: broker of Celery, with which a hub tells its servers what changed. Defaults to none: run `manage.py amesh_propagate --watch`. run `manage.py amesh_propagate --watch`.
AMESH_DIR or AUTH_MESH_DIR: device directory of this server. Defaults to ``~/.amesh``.
AMESH_REQUIRE_APPROVAL: 1 if a person must approve each device that is added. Defaults to 0.
AMESH_URL: public address of /amesh/ on this server, such as https://api.example/amesh/. A hub tells it its servers. Defaults to none.
AMESH_SEAL_KEY_FILE: the seal secret that several hosts share. Defaults to a secret from this server's own key.
AMESH_TRUST_PROXY: number of trusted proxies in front of the relay (X-Forwarded-For). Defaults to 0.
AMESH_RELAY_MAX_SESSIONS, AMESH_RELAY_MATCH_SECONDS and so on: the numbers in AMESH["RELAY"]. Default to those of the protocol.
AMESH_RELAY_ALLOWED_ORIGINS: web pages that may connect to the relay, separated by commas. Defaults to none.
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
    # Before any middleware that might read the body.
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
    # Readers and the writer do not wait for each other, and a transaction takes the write lock when it begins.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
else:
    DATABASES["default"] |= {
        name: os.environ.get(f"DJANGO_DB_{name}", "") for name in ("USER", "PASSWORD", "HOST", "PORT")
    }
if _ENGINE.endswith("postgresql"):
    # A pool fits every server; CONN_MAX_AGE would leave connections open under ASGI. A connection is tested before it is used.
    DATABASES["default"] |= {
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "pool": {"min_size": 1, "max_size": 10, "timeout": 10},
            "connect_timeout": 5,
            "options": "-c statement_timeout=30000",  # milliseconds
        },
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if os.environ.get("REDIS_URL"):
    CACHES = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": os.environ["REDIS_URL"],
            "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 2, "SOCKET_TIMEOUT": 2},
        }
    }
else:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

AMESH: dict[str, Any] = {
    "NONCE_CACHE": "default",  # nothing else in this project uses a cache
    "SEAL_KEY_FILE": os.environ.get("AMESH_SEAL_KEY_FILE") or None,
    "URL": os.environ.get("AMESH_URL") or None,
    "PROTECT": ["/protected/"],
    "REQUIRE_APPROVAL": flag("AMESH_REQUIRE_APPROVAL"),
    "SCOPES": {"readings:read": "Read the readings.", "readings:write": "Send readings."},
    "RELAY": {
        **numbers("AMESH_RELAY_", RelaySettings),
        "ALLOWED_ORIGINS": words("AMESH_RELAY_ALLOWED_ORIGINS"),
    },
}

if os.environ.get("CELERY_BROKER_URL"):
    CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
    CELERY_TASK_IGNORE_RESULT = True
    CELERY_TASK_ROUTES = {"amesh.*": {"queue": "amesh"}}
    CELERY_BEAT_SCHEDULE = {
        "amesh": {"task": "amesh.sweep", "schedule": 1.0, "options": {"queue": "amesh", "expires": 5}},
    }
    CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "celerybeat-schedule")
    CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True  # a worker that starts before its broker waits for it
    CELERY_WORKER_HIJACK_ROOT_LOGGER = False  # LOGGING below applies to workers, too

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
    # Not everything at INFO, where HTTP clients log whole URLs: a query may hold secrets.
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"amesh_django": {"level": "INFO"}, "relay_project": {"level": "INFO"}},
}
