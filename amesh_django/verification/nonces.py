"""Nonce stores: an atomic check-and-set with an expiry (protocol.md §3, step 7)."""

from __future__ import annotations

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache

from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol.errors import NonceStoreUnavailable

from .types import NonceStore


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
    return NonceStoreUnavailable(
        reason=f"nonce_store_unavailable ({detail})", hint="Check the cache that AMESH['NONCE_CACHE'] names."
    )


def store_for(alias: str) -> NonceStore:
    """Return the nonce store for a Django cache.

    Django's own local-memory cache deletes a third of its entries when it has 300, even live nonces, so that a request could be
    replayed. For such a cache, the nonces are stored in the memory of this process instead.

    Args:
        alias: name of the cache in ``CACHES``.

    Raises:
        InvalidCacheBackendError: ``CACHES`` has no such cache.
    """
    cache = caches[alias]
    return _LocalMemory() if isinstance(cache, LocMemCache) else _PerThread(alias)


class _LocalMemory(InMemoryNonceStore):
    """A store in memory whose error names the setting of this app."""

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        try:
            return super().record(device_id, nonce, seconds)
        except NonceStoreUnavailable as error:
            hint = "Store nonces in Redis: add a Redis cache to CACHES, and set AMESH['NONCE_CACHE'] to its name."
            raise NonceStoreUnavailable(error.message, hint=hint, reason=error.reason) from None


class _PerThread:
    """A :class:`CacheNonceStore` per call: Django's cache connections belong to one thread or task."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        return CacheNonceStore(caches[self._alias]).record(device_id, nonce, seconds)
