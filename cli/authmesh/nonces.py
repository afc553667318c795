"""Nonces in the memory of one process: an atomic check-and-set with an expiry (protocol.md §3 step 7)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from authmesh.protocol.errors import NonceStoreUnavailable

#: Most nonces that a store holds, unless its caller says otherwise.
MAX_NONCES = 1_000_000


class InMemoryNonceStore:
    """Remember nonces in this process, for development and for a server of one process.

    A nonce is forgotten only when its time is up. A store that is full of live nonces raises an error instead of dropping one,
    because a request whose nonce was dropped could be replayed. All methods are safe to call from several threads.

    Args:
        clock: returns seconds; monotonic in production.
        capacity: how many live nonces are held at most.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, capacity: int = MAX_NONCES) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._expiries: dict[str, float] = {}
        self._order: deque[tuple[float, str]] = deque()

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        """Remember a nonce of a device.

        Args:
            seconds: how long the nonce is remembered. Use one value for all calls: memory is freed in the order of the calls.

        Returns:
            True if the nonce was new, False if it was seen before.

        Raises:
            NonceStoreUnavailable: the store is full of live nonces.
        """
        key = f"{device_id}:{nonce}"
        with self._lock:
            now = self._clock()
            order = self._order
            while order and order[0][0] <= now:
                expiry, old = order.popleft()
                if self._expiries.get(old) == expiry:
                    del self._expiries[old]
            if self._expiries.get(key, now) > now:
                return False
            if len(self._expiries) >= self._capacity:
                raise NonceStoreUnavailable(
                    f"The nonce store in memory is full: it holds {self._capacity} nonces. The request was not accepted.",
                    hint="Use a nonce store that all processes share, such as Redis, or give this one more capacity.",
                    reason="nonce_store_full",
                )
            self._expiries[key] = now + seconds
            order.append((now + seconds, key))
            return True
