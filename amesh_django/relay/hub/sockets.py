"""One connection: what it is doing, and what waits to be sent to it."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from ..exchange.base import Event, Ref

Send = Callable[[Any], Awaitable[None]]

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
RESTART: Final = 1012
TRY_LATER: Final = 1013

#: Events that may wait for a connection whose own message is still being dealt with.
_MOST_EARLY: Final = 100


@dataclass(slots=True)
class Session:
    """A pairing, as one of its two sides sees it.

    Attributes:
        name: random; a code may be used again, a name is not.
        code: the one-time code.
        until: when time is up.
        peer: the other side, once it has come.
        bytes: how much both have sent.
    """

    name: str
    code: str = field(repr=False)
    until: float
    peer: Ref | None = None
    bytes: int = 0


@dataclass(slots=True)
class Budget:
    """What the connections of a process may leave unread together.

    Attributes:
        limit: in bytes.
        used: of these.
    """

    limit: int
    used: int = 0


class Socket:
    """A connection of this process.

    Args:
        send: of ASGI.
        number: its name in this process.
        address: what its limits hang on.
        now: when it came.
        limit: bytes that may wait for it.
        budget: bytes that may wait for all.

    Attributes:
        session: the pairing it takes part in.
        watches: the tokens it watches for, and until when.
        askers: tokens that somebody has come with, who that is, and until when the answer is awaited.
        asking: the token that it has come with itself, while it waits for the answer.
        asked: who watches for that.
        asking_until: how long it waits.
        idle_since: when it last did something.
        errors: how many of its messages were refused within a minute.
        errors_until: when that minute ends.
        overrun: more has happened to it than could wait, and something is lost: it has to be closed.
        closed: True once it is being closed; then it takes and sends no more.
    """

    __slots__ = (
        "_budget",
        "_early",
        "_limit",
        "_outbox",
        "_seen",
        "_seen_at",
        "_send",
        "_sent",
        "_turn",
        "_unsent",
        "_writer",
        "address",
        "asked",
        "askers",
        "asking",
        "asking_until",
        "closed",
        "errors",
        "errors_until",
        "idle_since",
        "number",
        "overrun",
        "session",
        "watches",
    )

    def __init__(self, send: Send, *, number: int, address: str, now: float, limit: int, budget: Budget) -> None:
        self.number = number
        self.address = address
        self.session: Session | None = None
        self.watches: dict[str, float] = {}
        self.askers: dict[str, tuple[Ref, float]] = {}
        self.asking: str | None = None
        self.asked: Ref | None = None
        self.asking_until = 0.0
        self.idle_since = now
        self.errors = 0
        self.errors_until = 0.0
        self.overrun = False
        self.closed = False
        self._send = send
        self._limit = limit
        self._budget = budget
        self._outbox: deque[tuple[dict[str, Any], int]] = deque()
        self._unsent = 0
        self._sent = self._seen = 0
        self._seen_at = now
        self._turn: object | None = None
        self._writer: asyncio.Task[None] | None = None
        self._early: deque[Event] | None = None

    @property
    def idle(self) -> bool:
        """Nothing is expected from it or for it."""
        return not (self.session or self.watches or self.askers or self.asking)

    @property
    def unsent(self) -> int:
        """Bytes that wait for it."""
        return self._unsent

    def stalled(self, now: float) -> float:
        """For how long it has read nothing of what waits for it, as far as those who look now and then can tell."""
        if not self._unsent or self._sent != self._seen:
            self._seen, self._seen_at = self._sent, now
        return now - self._seen_at

    def write(self, text: str) -> bool:
        """Send a text frame, after all that waits already.

        Returns:
            False if it does not fit: the client reads too slowly. Then the connection has to be closed.
        """
        if self.closed:
            return True
        size = sys.getsizeof(text)
        full = self._unsent + size > self._limit or self._budget.used + size > self._budget.limit
        if full and self._unsent:
            return False
        self._unsent += size
        self._budget.used += size
        self._outbox.append(({"type": "websocket.send", "text": text}, size))
        self._begin()
        return True

    def close(self, code: int, *, at_once: bool = False) -> None:
        """Close it, after what waits. Once more, at once, if what waits is not taken.

        Args:
            code: of WebSocket.
            at_once: instead of what waits.
        """
        if self.closed and not (at_once and self._unsent):
            return
        self.closed = True
        if at_once:
            self._abandon()
        self._outbox.append(({"type": "websocket.close", "code": code}, 0))
        self._begin()

    def release(self) -> None:
        """The connection is gone: forget what waits for it."""
        self.closed = True
        self._abandon()

    def hold(self) -> None:
        """Events wait from now on, for what its own message means is not yet known."""
        self._early = deque()

    def held(self, event: Event) -> bool:
        """True if events wait, this one among them now; unless they are too many, and then it is overrun."""
        if self._early is None:
            return False
        if len(self._early) < _MOST_EARLY:
            self._early.append(event)
        else:
            self.overrun = True
        return True

    def unhold(self) -> deque[Event]:
        """Events wait no longer; these did."""
        early, self._early = self._early, None
        return early or deque()

    def _begin(self) -> None:
        if self._turn is None:
            self._turn = turn = object()
            self._writer = _start(self._drain(turn))

    def _abandon(self) -> None:
        self._outbox.clear()
        self._budget.used -= self._unsent
        self._unsent = 0
        self._turn = None
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None

    async def _drain(self, turn: object) -> None:
        """Servers that know how much their client has read make ``send`` wait; meanwhile the rest waits here, counted."""
        try:
            while self._outbox and self._turn is turn:
                message, size = self._outbox.popleft()
                await (self._send(message) if size else self._close(message))
                if self._turn is turn:
                    self._sent += 1
                    self._unsent -= size
                    self._budget.used -= size
        except asyncio.CancelledError:
            pass
        except Exception:  # whatever a server raises once the client is gone: its disconnect is on the way
            if self._turn is turn:
                self._writer = None
                self._abandon()
        finally:
            if self._turn is turn:
                self._turn = self._writer = None

    async def _close(self, message: dict[str, Any]) -> None:
        """autobahn, and so daphne as it comes, refuses the codes that only servers use. :mod:`.server` makes it take them."""
        try:
            await self._send(message)
        except asyncio.CancelledError:
            raise
        except Exception:
            await self._send({**message, "code": message["code"] + 3000})


#: Run a task right away, as far as it goes without waiting: which is to its end unless the client is slow.
_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def _start(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), **_EAGERLY)
