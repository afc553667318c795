"""The exchange of a relay that is one process: in its memory, and bounded."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ..conf import RelaySettings
from .base import Event, Joined, Local, Ref

V = TypeVar("V")

_MINUTE: Final = 60.0
#: How many addresses, and how many failed codes, are remembered at a time. Beyond it the oldest are forgotten.
REMEMBERED: Final = 100_000


class Expiring(Generic[V]):
    """Values that are forgotten some time after they were put.

    Args:
        seconds: how long they last; the same for all, so that the oldest is always the next to go.
        clock: seconds.
        capacity: how many there are at most; one more pushes the oldest out.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], capacity: int = REMEMBERED) -> None:
        self._seconds = seconds
        self._clock = clock
        self._capacity = capacity
        self._items: dict[str, tuple[float, V]] = {}

    def __len__(self) -> int:
        self._forget()
        return len(self._items)

    def get(self, key: str) -> V | None:
        """The value, unless its time is up."""
        item = self._items.get(key)
        return item[1] if item is not None and item[0] > self._clock() else None

    def put(self, key: str, value: V) -> None:
        """Remember a value; its time begins anew."""
        self._items.pop(key, None)
        self._forget()
        if len(self._items) >= self._capacity:
            del self._items[next(iter(self._items))]
        self._items[key] = (self._clock() + self._seconds, value)

    def remove(self, key: str) -> None:
        """Forget a value."""
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
    """Something that is counted."""

    number: int = 0


class Rates:
    """How often an address has tried within a minute that begins with its first try.

    Args:
        limit: how often it may.
        clock: seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._counts: Expiring[Count] = Expiring(_MINUTE, clock)

    def exceeded(self, address: str) -> bool:
        """Count one more try."""
        count = self._counts.get(address)
        if count is None:
            count = Count()
            self._counts.put(address, count)
        count.number += 1
        return count.number > self._limit


@dataclass(slots=True)
class Waiting:
    """A code that is being used."""

    session: str
    target: Ref
    until: float
    matched: bool = False


class MemoryExchange:
    """See :class:`.exchange.Exchange`.

    Args:
        settings: the limits.
        clock: seconds, monotonic in production.
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
        """Nothing is to be done."""

    async def stop(self) -> None:
        """Nothing is to be done."""

    async def refresh(self) -> None:
        """There are no others."""

    async def open(self, code: str, session: str, me: Ref, address: str) -> str | None:
        """See :class:`.exchange.Exchange`."""
        if self._tries.exceeded(address):
            return "rate_limited"
        if self._find(code) is not None or self._burnt(code):
            return "otc_in_use"
        if len(self._codes) >= self._settings.MAX_SESSIONS:
            return "relay_capacity"
        self._codes[code] = Waiting(session, me, self._clock() + self._settings.MATCH_SECONDS)
        return None

    async def join(self, code: str, me: Ref, address: str) -> Joined | str:
        """See :class:`.exchange.Exchange`."""
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
        """See :class:`.exchange.Exchange`."""
        waiting = self._codes.get(code)
        if waiting is not None and waiting.session == session:
            del self._codes[code]

    async def watch(self, jti: str, me: Ref, address: str) -> str | None:
        """See :class:`.exchange.Exchange`."""
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
        """See :class:`.exchange.Exchange`."""
        if self._watches.get(jti) == me:
            self._watches.remove(jti)

    async def use(self, jti: str) -> Ref | str:
        """See :class:`.exchange.Exchange`."""
        if self._used.get(jti):
            return "token_already_used"
        watcher = self._watches.get(jti)
        if watcher is None:
            return "no_watcher"
        if len(self._used) >= self._settings.MAX_USED_TOKENS:  # to forget one would let it be used twice
            return "relay_capacity"
        self._used.put(jti, True)
        return watcher

    async def unuse(self, jti: str) -> None:
        """See :class:`.exchange.Exchange`."""
        self._used.remove(jti)

    async def restore_sessions(self, sessions: Sequence[tuple[str, str, Ref, float]]) -> list[str]:
        """Memory is not lost alone."""
        return []

    async def restore_watches(self, watches: Sequence[tuple[str, Ref, float]]) -> None:
        """Memory is not lost alone."""

    async def send(self, to: Ref, event: Event) -> bool:
        """There are no others."""
        return False

    async def sessions(self) -> int:
        """See :class:`.exchange.Exchange`."""
        return len(self._codes)

    def _find(self, code: str) -> Waiting | None:
        waiting = self._codes.get(code)
        return waiting if waiting is not None and waiting.until > self._clock() else None

    def _burnt(self, code: str) -> bool:
        failures = self._failures.get(code)
        return failures is not None and failures.number >= self._settings.TRIES_PER_CODE
