"""System checks, with ids that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.memcached import BaseMemcachedCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connections

from amesh_django.relay import conf as relay_conf
from amesh_django.trust import keys
from amesh_django.trust.database import database
from authmesh.device import default_directory, permission_problems, read_identity
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.storage import expanded
from authmesh.pairing.bootstrap import background as bootstrap_first
from authmesh.protocol.errors import AmeshError

from . import conf
from .models import AllowListSeal, Device
from .trust import triggers

_KINDS = {"unknown": "amesh.E001", "value": "amesh.E002", "window": "amesh.E003"}
#: A database cache that culls below this many entries may forget live nonces.
_LEAST_ENTRIES = 100_000


@register(Tags.security)
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001 unknown key, E002 wrong value, E003 nonce window shorter than twice the clock skew."""
    found = [*conf.problems(), *relay_conf.problems()]
    return [Error(sentence, id=_KINDS[kind]) for kind, sentence in found]


@register(Tags.security)
def check_nonce_cache(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004 no such cache, E005 dummy, E006 files; W001 local memory outside of development, W002 a cache that evicts."""
    if conf.problems():
        return []
    alias = conf.amesh_settings().NONCE_CACHE
    redis = "Use Redis: CACHES with django_redis.cache.RedisCache, and its name in AMESH['NONCE_CACHE']."
    try:
        cache = caches[alias]
    except (InvalidCacheBackendError, ImportError) as error:
        return [Error(f"AMESH['NONCE_CACHE'] names the cache {alias!r}: {error}", hint=redis, id="amesh.E004")]
    if isinstance(cache, DummyCache):
        return [
            Error("The nonce store is a dummy cache: every request could be replayed.", hint=redis, id="amesh.E005")
        ]
    if isinstance(cache, FileBasedCache):
        return [Error("The nonce store is a file cache, which is not atomic: replays.", hint=redis, id="amesh.E006")]
    if isinstance(cache, LocMemCache) and not django_settings.DEBUG:
        return [
            Warning(
                "Using in-memory nonce store: with more than one process, a request can be replayed to another one.",
                hint=redis,
                id="amesh.W001",
            )
        ]
    evicts = isinstance(cache, BaseMemcachedCache) or (
        isinstance(cache, DatabaseCache) and cache._max_entries < _LEAST_ENTRIES
    )
    if evicts:
        return [
            Warning(
                f"The nonce store {alias!r} throws entries away when it is full, live nonces among them.",
                hint=f"{redis} Or give a database cache OPTIONS['MAX_ENTRIES'] of {_LEAST_ENTRIES} or more.",
                id="amesh.W002",
            )
        ]
    return []


@register(Tags.security)
def check_directory(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W003 no identity, W004 a device directory that is open to others, W006 a shared seal secret that can't be used."""
    if conf.problems():
        return []
    shared = conf.amesh_settings().SEAL_KEY_FILE
    if shared is not None:
        try:
            keys.read_seal_key_file(expanded(shared))
        except AmeshError as error:
            return [Warning(str(error), hint="Until then every signed request is refused.", id="amesh.W006")]
    configured = conf.amesh_settings().DIR
    path = None
    try:
        path = expanded(configured) if configured else default_directory()
        read_identity(path)
    except AmeshError as error:
        hint = "Until then every signed request is refused."
        if path is not None and bootstrap_first.is_due(path):
            hint += f" The first one enrols this server with the token in {TOKEN_VARIABLE}, and so does manage.py amesh_bootstrap."
        return [Warning(str(error), hint=hint, id="amesh.W003")]
    return [Warning(found.message, hint=found.hint, id="amesh.W004") for found in permission_problems(path)]


@register(Tags.database)
def check_triggers(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W005 the triggers that notice changes past the app are missing. Runs with ``check --database`` and ``migrate``."""
    using = database()
    if using not in (databases or ()):
        return []
    try:
        tables = set(connections[using].introspection.table_names())
        missing = {Device._meta.db_table, AllowListSeal._meta.db_table} <= tables and not triggers.installed(using)
    except DatabaseError:
        return []
    if not missing:
        return []
    return [
        Warning(
            f"The database {using!r} lacks the triggers that notice at once when a device is changed past the app.",
            hint="Grant the database user TRIGGER (MySQL with a binary log: log_bin_trust_function_creators), then migrate. "
            "Without them, a change past the app takes no effect and is found when a process starts, or by amesh_integrity.",
            id="amesh.W005",
        )
    ]
