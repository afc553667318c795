"""Where nonces are remembered: an atomic check-and-set with an expiry (protocol.md §3 step 7)."""

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

#: Most nonces that local memory holds. Full of live ones, it refuses: to forget one would allow a replay.
LOCAL_CAPACITY = 1_000_000


class LocalNonceStore:
    """Nonces in the memory of this process: for development, and for a server of one process.

    Django's own local-memory cache throws away a third of its entries when it has 300, live nonces among them, so a request
    could be replayed; this one forgets a nonce only when its time is up.

    Args:
        clock: seconds, monotonic in production.
        capacity: how many live nonces are held at most.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, capacity: int = LOCAL_CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._expiries: dict[str, float] = {}
        self._order: deque[tuple[float, str]] = deque()

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        """See :class:`NonceStore`."""
        key = f"{device_id}:{nonce}"
        with self._lock:
            now = self._clock()
            order = self._order
            while order and order[0][0] <= now:  # expiries never decrease: the window is one for all
                expiry, old = order.popleft()
                if self._expiries.get(old) == expiry:
                    del self._expiries[old]
            if self._expiries.get(key, now) > now:
                return False
            if len(self._expiries) >= self._capacity:
                raise NonceStoreUnavailable(
                    "Local memory holds all the nonces that it can. Use a Redis cache: AMESH['NONCE_CACHE'].",
                    reason="nonce_store_full",
                )
            self._expiries[key] = now + seconds
            order.append((now + seconds, key))
            return True


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
    """The nonce store for a Django cache; local memory gets a store that never forgets too early."""
    cache = caches[alias]
    return LocalNonceStore() if isinstance(cache, LocMemCache) else _PerThread(alias)


class _PerThread:
    """Django's cache connections belong to a thread (or task), so each look-up goes through ``caches``."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        return CacheNonceStore(caches[self._alias]).record(device_id, nonce, seconds)
