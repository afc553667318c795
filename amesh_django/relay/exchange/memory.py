"""The exchange of a relay of one process, in bounded memory."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

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
        self._items.pop(key, None)
        self._forget()
        if len(self._items) >= self._capacity:
            del self._items[next(iter(self._items))]
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
            del self._items[key]


@dataclass(slots=True)
class Count:
    """A number that is counted up."""

    number: int = 0


class Rates:
    """The number of tries of each address in the minute after its first try.

    Args:
        limit: the maximum number of tries in a minute.
        clock: returns the time in seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._counts: Expiring[Count] = Expiring(_MINUTE, clock)

    def exceeded(self, address: str) -> bool:
        """Count a try. Return True if there are too many."""
        count = self._counts.get(address)
        if count is None:
            count = Count()
            self._counts.put(address, count)
        count.number += 1
        return count.number > self._limit


@dataclass(slots=True)
class Waiting:
    """A code in use: a target waits with it, or is matched."""

    session: str
    target: Ref
    until: float
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
        self._failures: Expiring[Count] = Expiring(settings.BURNT_SECONDS, clock)
        self._tries = Rates(settings.TRIES_PER_MINUTE, clock)
        self._watch_tries = Rates(settings.WATCHES_PER_MINUTE, clock)
        self._watches: Expiring[Ref] = Expiring(settings.WATCH_SECONDS, clock, settings.MAX_SESSIONS)
        self._used: Expiring[bool] = Expiring(settings.USED_TOKEN_SECONDS, clock, settings.MAX_USED_TOKENS)

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
        if len(self._codes) >= self._settings.MAX_SESSIONS:
            return "relay_capacity"
        self._codes[code] = Waiting(session, me, self._clock() + self._settings.MATCH_SECONDS)
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
            del self._codes[code]

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        if self._watch_tries.exceeded(address):
            return "rate_limited"
        watcher = self._watches.get(jti)
        if watcher is not None and watcher != me:
            return "jti_already_watched"
        if watcher is None and len(self._watches) >= self._settings.MAX_SESSIONS:
            return "relay_capacity"
        self._watches.put(jti, me)
        return None

    async def unwatch(self, jti: str, me: Ref) -> None:
        if self._watches.get(jti) == me:
            self._watches.remove(jti)

    async def use(self, jti: str) -> Ref | str:
        if self._used.get(jti):
            return "token_already_used"
        watcher = self._watches.get(jti)
        if watcher is None:
            return "no_watcher"
        if len(self._used) >= self._settings.MAX_USED_TOKENS:  # a token that is forgotten could be used twice
            return "relay_capacity"
        self._used.put(jti, True)
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

    def _find(self, code: str) -> Waiting | None:
        waiting = self._codes.get(code)
        return waiting if waiting is not None and waiting.until > self._clock() else None

    def _is_burnt(self, code: str) -> bool:
        """Return True if so many tries on a code failed that nobody may wait with it. It stays burnt for BURNT_SECONDS."""
        failures = self._failures.get(code)
        return failures is not None and failures.number >= self._settings.TRIES_PER_CODE
