"""Checks of the cache for nonces."""

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
from django.db import connections

from amesh_django import conf
from amesh_django.verification import nonces
from amesh_django.verification.eviction import eviction, forgets, forgetting

#: Minimum of ``MAX_ENTRIES`` of a database cache. A cache with fewer entries may delete live nonces.
_MIN_ENTRIES = 100_000


@register(Tags.security)
def check_nonce_cache(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the cache for nonces.

    - ``amesh.E004``: there is no such cache.
    - ``amesh.E005``: it is a dummy cache.
    - ``amesh.E006``: it is a file cache.
    - ``amesh.W001``: it is a local-memory cache, and DEBUG is False.
    - ``amesh.W002``: it deletes entries when it is full.
    - ``amesh.W007``: it is the default cache, because the settings name none, and DEBUG is False.
    - ``amesh.W018``: it is in a database with ATOMIC_REQUESTS.
    """
    if conf.problems():
        return []
    alias, redis = conf.nonce_cache(), nonces.USE_REDIS
    try:
        cache = caches[alias]
    except (InvalidCacheBackendError, ImportError) as error:
        hint = f"{redis} To install the package, run pip install 'amesh-django[redis]'."
        return [Error(f"AMESH['NONCE_CACHE'] is {alias!r}, which cannot be used: {error}", hint=hint, id="amesh.E004")]
    if isinstance(cache, DummyCache):
        return [Error(nonces.DUMMY, hint=redis, id="amesh.E005")]
    if isinstance(cache, FileBasedCache):
        return [Error(nonces.FILE, hint=redis, id="amesh.E006")]
    if isinstance(cache, LocMemCache) and not django_settings.DEBUG:
        return [Warning(nonces.LOCAL_MEMORY, hint=redis, id="amesh.W001")]
    is_small = isinstance(cache, DatabaseCache) and cache._max_entries < _MIN_ENTRIES
    if is_small or isinstance(cache, BaseMemcachedCache):
        return [
            Warning(
                f"The nonce store {alias!r} deletes entries when it is full, even live nonces: a request could be replayed.",
                hint=f"{redis} With a database cache, you can set OPTIONS['MAX_ENTRIES'] to {_MIN_ENTRIES} or more instead.",
                id="amesh.W002",
            )
        ]
    if isinstance(cache, DatabaseCache) and connections[nonces.database_of(cache)].settings_dict["ATOMIC_REQUESTS"]:
        rejected = "Requests that the decorator or REST framework verifies are rejected; the middleware runs before the transaction."
        return [Warning(f"{nonces.ROLLED_BACK} {rejected}", hint=nonces.LEAVE_TRANSACTION, id="amesh.W018")]
    if conf.amesh_settings().NONCE_CACHE is None and alias != conf.OWN_CACHE and not django_settings.DEBUG:
        return [
            Warning(
                f"Nonces are in the cache {alias!r}, which the project uses for other things, too: cache.clear() and another "
                "KEY_PREFIX or VERSION make it forget live nonces, and a request could be replayed.",
                hint=f"Add a cache {conf.OWN_CACHE!r} to CACHES for nonces alone, with another database of Redis. To keep using the "
                f"cache {alias!r}, set AMESH['NONCE_CACHE'] to its name.",
                id="amesh.W007",
            )
        ]
    return []


@register(Tags.security, deploy=True)
def check_nonce_eviction(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Ask the Redis of the nonces whether it deletes or forgets entries. Runs with ``check --deploy``, because it needs Redis.

    - ``amesh.W008``: it deletes entries when its memory is full.
    - ``amesh.W009``: it does not tell, because CONFIG and INFO are forbidden.
    - ``amesh.W014``: it forgets them when it ends.
    """
    if conf.problems():
        return []
    alias = conf.nonce_cache()
    try:
        found, is_forgetful = eviction(alias, caches[alias]), forgets(caches[alias])
    except Exception:  # there is no such cache (amesh.E004), or Redis cannot be reached: doctor reports that
        return []
    messages: list[CheckMessage] = []
    if found is not None:
        check_id = "amesh.W009" if found.policy is None else "amesh.W008"
        messages.append(Warning(found.message, hint=found.hint, id=check_id))
    if is_forgetful:
        message, hint = forgetting(alias)
        messages.append(Warning(message, hint=hint, id="amesh.W014"))
    return messages
