"""Nonces in a Django cache: an atomic check-and-set with an expiry (protocol.md §3 step 7)."""

from __future__ import annotations

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache

from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol.errors import NonceStoreUnavailable

from .types import NonceStore


class CacheNonceStore:
    """Nonces in a Django cache, shared by all processes that use it.

    Args:
        cache: its ``add`` must be atomic.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        """See :class:`NonceStore`. An answer that is neither yes nor no (django-redis ignoring its errors) is an outage."""
        try:
            added = self._cache.add(f"amesh:nonce:{device_id}:{nonce}", 1, timeout=seconds)
        except Exception as error:  # whatever a cache backend raises, it does not know
            raise NonceStoreUnavailable(reason=f"nonce_store_unavailable ({type(error).__name__})") from error
        if added is True or added is False:
            return added
        raise NonceStoreUnavailable(reason="nonce_store_unavailable (no answer)")


def store_for(alias: str) -> NonceStore:
    """Return the nonce store for a Django cache.

    Django's own local-memory cache drops a third of its entries when it has 300, live nonces among them, so that a request could be
    replayed. :class:`~authmesh.nonces.InMemoryNonceStore` takes its place.
    """
    cache = caches[alias]
    return InMemoryNonceStore() if isinstance(cache, LocMemCache) else _PerThread(alias)


class _PerThread:
    """Django's cache connections belong to a thread (or task), so each look-up goes through ``caches``."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        return CacheNonceStore(caches[self._alias]).record(device_id, nonce, seconds)
