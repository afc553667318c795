"""Nonce stores: an atomic check-and-set with an expiry (protocol.md §3, step 7)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache

from authmesh.protocol.errors import NonceStoreUnavailable

from .types import NonceStore

#: Maximum number of nonces in local memory. A full store rejects requests: forgetting a live nonce would allow a replay.
MAX_LOCAL_NONCES = 1_000_000


class LocalNonceStore:
    """Nonces in the memory of this process: for development, and for a server with one process.

    Django's own local-memory cache deletes a third of its entries when it has 300, even live nonces, so that a request could be
    replayed. This store forgets a nonce only when it has expired.

    Args:
        clock: returns seconds. Monotonic in production.
        capacity: maximum number of live nonces.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, capacity: int = MAX_LOCAL_NONCES) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._expiries: dict[str, float] = {}
        self._order: deque[tuple[float, str]] = deque()

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        key = f"{device_id}:{nonce}"
        with self._lock:
            now = self._clock()
            order = self._order
            while order and order[0][0] <= now:  # expiries never decrease: all nonces have the same window
                expiry, old = order.popleft()
                if self._expiries.get(old) == expiry:
                    del self._expiries[old]
            if self._expiries.get(key, now) > now:
                return False
            if len(self._expiries) >= self._capacity:
                raise NonceStoreUnavailable(
                    "The nonce store in local memory is full. Signed requests are rejected until nonces expire.",
                    hint="Store nonces in Redis: add a Redis cache to CACHES, and set AMESH['NONCE_CACHE'] to its name.",
                    reason="nonce_store_full",
                )
            self._expiries[key] = now + seconds
            order.append((now + seconds, key))
            return True


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

    Args:
        alias: name of the cache in ``CACHES``. For a local-memory cache, the store is a :class:`LocalNonceStore`.

    Raises:
        InvalidCacheBackendError: ``CACHES`` has no such cache.
    """
    cache = caches[alias]
    return LocalNonceStore() if isinstance(cache, LocMemCache) else _PerThread(alias)


class _PerThread:
    """A :class:`CacheNonceStore` per call: Django's cache connections belong to one thread or task."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        return CacheNonceStore(caches[self._alias]).record(device_id, nonce, seconds)
