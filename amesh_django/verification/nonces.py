"""Nonce stores: an atomic check-and-set with an expiry (protocol.md §3, step 7)."""

from __future__ import annotations

import logging

from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connections, router

from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol.errors import NonceStoreUnavailable

from .eviction import eviction
from .types import NonceStore

logger = logging.getLogger("amesh_django.verification")


class CacheNonceStore:
    """Nonces in a Django cache, which all processes share.

    Args:
        cache: a cache with an atomic ``add``.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        try:
            added = self._cache.add(f"amesh:nonce:{device_id}:{nonce}", 1, timeout=seconds)
        except Exception as error:  # each cache backend raises errors of its own
            raise _unavailable(type(error).__name__) from error
        if added is True or added is False:
            return added
        raise _unavailable("no answer")  # django-redis returns None for an error that it ignores


def _unavailable(detail: str) -> NonceStoreUnavailable:
    return NonceStoreUnavailable(detail=detail, hint="Check the cache that AMESH['NONCE_CACHE'] names.")


#: What is wrong with a cache as a nonce store. The system checks say the same.
DUMMY = "The nonce store is a dummy cache: any request could be replayed."
FILE = "The nonce store is a file cache, which is not atomic: a request could be replayed."
LOCAL_MEMORY = "Using in-memory nonce store: with more than one process, a request can be replayed to another process."
ROLLED_BACK = (
    "The nonce store is a database cache, and a nonce is written in the transaction of the request. If that is rolled back, the nonce is "
    "forgotten: the request could be replayed."
)
#: What to do about each of them.
USE_REDIS = "Add a cache with django_redis.cache.RedisCache to CACHES, and set AMESH['NONCE_CACHE'] to its name."
LEAVE_TRANSACTION = f"{USE_REDIS} Or turn ATOMIC_REQUESTS off for this database, and let no transaction.atomic surround what verifies the request."


def store_for(alias: str) -> NonceStore:
    """Return the nonce store for a Django cache.

    Django's own local-memory cache deletes a third of its entries when it has 300, even live nonces, so that a request could be
    replayed. For such a cache, the nonces are stored in the memory of this process instead. A dummy cache and a file cache are no
    nonce stores: each request is rejected. So is a database cache in a transaction, which may be rolled back. This is done here, and not only in the system checks, because no server runs those.

    Args:
        alias: name of the cache in ``CACHES``.

    Raises:
        InvalidCacheBackendError: ``CACHES`` has no such cache.
    """
    cache = caches[alias]
    if isinstance(cache, DummyCache):
        return _Unfit(DUMMY, "dummy cache")
    if isinstance(cache, FileBasedCache):
        return _Unfit(FILE, "file cache")
    if isinstance(cache, LocMemCache):
        return _LocalMemory()
    return _InDatabase(alias) if isinstance(cache, DatabaseCache) else _PerThread(alias)


def database_of(cache: DatabaseCache) -> str:
    """Return the alias of the database that a database cache writes to."""
    return router.db_for_write(cache.cache_model_class)


class _Unfit:
    """A cache that cannot store nonces: each request is rejected."""

    def __init__(self, message: str, detail: str) -> None:
        self._message, self._detail = message, detail

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        message = f"{self._message} All signed requests are rejected."
        raise NonceStoreUnavailable(message, hint=USE_REDIS, reason="nonce_store_unfit", detail=self._detail)


class _LocalMemory(InMemoryNonceStore):
    """A store in memory that warns once, and whose error names the setting of this app."""

    _warned = False

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        if not self._warned:
            self._warned = True
            if not django_settings.DEBUG:  # no process knows of the others
                logger.warning("%s %s", LOCAL_MEMORY, USE_REDIS)
        try:
            return super().record(device_id, nonce, seconds)
        except NonceStoreUnavailable as error:
            hint = "Store nonces in Redis: add a Redis cache to CACHES, and set AMESH['NONCE_CACHE'] to its name."
            raise NonceStoreUnavailable(error.message, hint=hint, reason=error.reason) from None


class _PerThread:
    """A :class:`CacheNonceStore` per call: Django's cache connections belong to one thread or task."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._asked = False

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        added = CacheNonceStore(caches[self._alias]).record(device_id, nonce, seconds)
        if not self._asked:
            self._asked = True
            self._warn_of_eviction()
        return added

    def _warn_of_eviction(self) -> None:
        try:
            found = eviction(self._alias, caches[self._alias])
        except Exception as error:  # a warning must not reject a request
            logger.warning(
                "Cannot read the maxmemory-policy of the nonce store %r: %s", self._alias, type(error).__name__
            )
            return
        if found is not None:
            logger.warning("%s %s", found.message, found.hint)


class _InDatabase(_PerThread):
    """A database cache, which must not be written to in a transaction that the view can roll back."""

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        cache = caches[self._alias]
        blocks = connections[database_of(cache)].atomic_blocks if isinstance(cache, DatabaseCache) else ()
        if not all(getattr(block, "_from_testcase", False) for block in blocks):
            message = f"{ROLLED_BACK} The request was rejected."
            raise NonceStoreUnavailable(
                message, hint=LEAVE_TRANSACTION, reason="nonce_store_unfit", detail="database cache in a transaction"
            )
        return super().record(device_id, nonce, seconds)
