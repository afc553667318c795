"""The exchange of a relay of one process, in bounded memory."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ..addresses import wide_network
from ..conf import RelaySettings
from .base import Event, Joined, Local, Ref

V = TypeVar("V")

_MINUTE: Final = 60.0
#: Addresses, and codes with failed tries, that are remembered at a time. If there are more, the oldest are forgotten.
MAX_REMEMBERED: Final = 100_000


class Expiring(Generic[V]):
    """A dict whose values expire.

    Args:
        seconds: the lifetime of a value; the same for all, so that the oldest value always expires next.
        clock: returns the time in seconds.
        capacity: the maximum number of values. If there are more, the oldest is forgotten.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], capacity: int = MAX_REMEMBERED) -> None:
        self._seconds = seconds
        self._clock = clock
        self._capacity = capacity
        self._items: dict[str, tuple[float, V]] = {}

    def __len__(self) -> int:
        self._forget()
        return len(self._items)

    def get(self, key: str) -> V | None:
        """Return a value, or None if it has expired."""
        item = self._items.get(key)
        return item[1] if item is not None and item[0] > self._clock() else None

    def put(self, key: str, value: V) -> None:
        """Add or replace a value. Its lifetime starts again."""
        self.remove(key)
        self._forget()
        if len(self._items) >= self._capacity:
            self.remove(next(iter(self._items)))
        self._items[key] = (self._clock() + self._seconds, value)

    def remove(self, key: str) -> None:
        """Remove a value."""
        self._items.pop(key, None)

    def _forget(self) -> None:
        now = self._clock()
        while self._items:
            key = next(iter(self._items))
            if self._items[key][0] > now:
                return
            self.remove(key)


class Owned(Expiring[V]):
    """An :class:`Expiring` that knows who owns each value."""

    def __init__(self, seconds: float, clock: Callable[[], float], capacity: int = MAX_REMEMBERED) -> None:
        super().__init__(seconds, clock, capacity)
        self._owners: dict[str, str] = {}
        self._owned: dict[str, dict[str, None]] = {}

    def put_for(self, owner: str, key: str, value: V) -> None:
        """Add or replace a value of an owner. Its lifetime starts again."""
        self.put(key, value)
        self._owners[key] = owner
        self._owned.setdefault(owner, {})[key] = None

    def owned_by(self, owner: str) -> Collection[str]:
        """Return the keys of an owner, the oldest first."""
        self._forget()
        return self._owned.get(owner, {})

    def remove(self, key: str) -> None:
        super().remove(key)
        owner = self._owners.pop(key, None)
        if owner is not None:
            del self._owned[owner][key]
            if not self._owned[owner]:
                del self._owned[owner]


@dataclass(slots=True)
class Count:
    """A number that is counted up."""

    number: int = 0


class Rates:
    """The number of tries of each address, and of each wide network, in the minute after its first try.

    Args:
        limit: the maximum number of tries of an address in a minute.
        addresses: the number of addresses that a wide network counts as.
        clock: returns the time in seconds.
    """

    def __init__(self, limit: int, addresses: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._wide_limit = limit * addresses
        self._counts: Expiring[Count] = Expiring(_MINUTE, clock)
        self._wide_counts: Expiring[Count] = Expiring(_MINUTE, clock)

    def exceeded(self, address: str) -> bool:
        """Count a try. Return True if there are too many.

        A try that is one too many for the address does not count for the network: one address can't use up what its neighbors have.
        A try that is one too many for the network is not remembered, so that a network can't fill the memory with its addresses.
        """
        wide = _count(self._wide_counts, wide_network(address))
        if wide.number >= self._wide_limit:
            return True
        count = _count(self._counts, address)
        count.number += 1
        if count.number > self._limit:
            return True
        wide.number += 1
        return False


def _count(counts: Expiring[Count], key: str) -> Count:
    count = counts.get(key)
    if count is None:
        count = Count()
        counts.put(key, count)
    return count


@dataclass(slots=True)
class Waiting:
    """A code in use: a target waits with it, or is matched."""

    session: str
    target: Ref
    until: float
    network: str
    matched: bool = False


class MemoryExchange:
    """The :class:`.base.Exchange` of a relay of one process.

    Args:
        settings: the limits.
        clock: returns the time in seconds; monotonic in production.
    """

    def __init__(self, settings: RelaySettings, clock: Callable[[], float]) -> None:
        self.process = secrets.token_hex(8)
        self.others = 0
        self._settings = settings
        self._clock = clock
        self._codes: dict[str, Waiting] = {}
        self._sessions_of: Counter[str] = Counter()
        self._failures: Expiring[Count] = Expiring(settings.BURNT_SECONDS, clock)
        self._tries = Rates(settings.TRIES_PER_MINUTE, settings.ADDRESSES_PER_NETWORK, clock)
        self._watch_tries = Rates(settings.WATCHES_PER_MINUTE, settings.ADDRESSES_PER_NETWORK, clock)
        self._token_tries = Rates(settings.TOKENS_PER_MINUTE, settings.ADDRESSES_PER_NETWORK, clock)
        self._watches: Owned[Ref] = Owned(settings.WATCH_SECONDS, clock, settings.MAX_SESSIONS)
        self._used: Owned[bool] = Owned(settings.USED_TOKEN_SECONDS, clock, settings.MAX_USED_TOKENS)

    def start(self, local: Local) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def refresh(self) -> None:
        pass

    async def open(self, code: str, session: str, me: Ref, address: str) -> str | None:
        if self._tries.exceeded(address):
            return "rate_limited"
        if self._find(code) is not None or self._is_burnt(code):
            return "otc_in_use"
        network = wide_network(address)
        self._forget(code)  # one that has expired
        if self._sessions_of[network] >= self._settings.SESSIONS_PER_NETWORK:
            return "rate_limited"
        if len(self._codes) >= self._settings.MAX_SESSIONS:
            return "relay_capacity"
        self._codes[code] = Waiting(session, me, self._clock() + self._settings.MATCH_SECONDS, network)
        self._sessions_of[network] += 1
        return None

    async def join(self, code: str, me: Ref, address: str) -> Joined | str:
        if self._tries.exceeded(address):
            return "rate_limited"
        waiting = self._find(code)
        if waiting is None or waiting.matched:
            failures = self._failures.get(code) or Count()
            failures.number += 1
            self._failures.put(code, failures)
            return "otc_not_found" if waiting is None else "peer_already_connected"
        waiting.matched = True
        waiting.until = self._clock() + self._settings.FINISH_SECONDS
        return Joined(waiting.session, waiting.target)

    async def end(self, code: str, session: str) -> None:
        waiting = self._codes.get(code)
        if waiting is not None and waiting.session == session:
            self._forget(code)

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        if self._watch_tries.exceeded(address):
            return "rate_limited"
        watcher = self._watches.get(jti)
        if watcher is not None and watcher != me:
            return "jti_already_watched"
        network = wide_network(address)
        if watcher is None:
            if len(self._watches.owned_by(network)) >= self._settings.SESSIONS_PER_NETWORK:
                return "rate_limited"
            if len(self._watches) >= self._settings.MAX_SESSIONS:
                return "relay_capacity"
        self._watches.put_for(network, jti, me)
        return None

    async def unwatch(self, jti: str, me: Ref) -> None:
        if self._watches.get(jti) == me:
            self._watches.remove(jti)

    async def use(self, jti: str, address: str) -> Ref | str:
        if self._token_tries.exceeded(address):
            return "rate_limited"
        if self._used.get(jti):
            return "token_already_used"
        watcher = self._watches.get(jti)
        if watcher is None:
            return "no_watcher"
        network = wide_network(address)
        used = self._used.owned_by(network)
        if len(used) >= self._settings.USED_TOKENS_PER_NETWORK:
            self._used.remove(next(iter(used)))
        if len(self._used) >= self._settings.MAX_USED_TOKENS:  # a token that is forgotten could be used twice
            return "relay_capacity"
        self._used.put_for(network, jti, True)
        return watcher

    async def unuse(self, jti: str) -> None:
        self._used.remove(jti)

    async def restore_sessions(self, sessions: Sequence[tuple[str, str, Ref, float]]) -> list[str]:
        return []  # the memory of a process is not lost while the process lives

    async def restore_watches(self, watches: Sequence[tuple[str, Ref, float]]) -> None:
        pass

    async def send(self, to: Ref, event: Event) -> bool:
        return False

    async def sessions(self) -> int:
        return len(self._codes)

    def _forget(self, code: str) -> None:
        waiting = self._codes.pop(code, None)
        if waiting is not None:
            self._sessions_of[waiting.network] -= 1
            if not self._sessions_of[waiting.network]:
                del self._sessions_of[waiting.network]

    def _find(self, code: str) -> Waiting | None:
        waiting = self._codes.get(code)
        return waiting if waiting is not None and waiting.until > self._clock() else None

    def _is_burnt(self, code: str) -> bool:
        """Return True if so many tries on a code failed that nobody may wait with it. It stays burnt for BURNT_SECONDS."""
        failures = self._failures.get(code)
        return failures is not None and failures.number >= self._settings.TRIES_PER_CODE
