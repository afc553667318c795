"""One connection: its state, and the messages that wait to be sent to its client."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from ..exchange.base import Event, Ref

SendFunction = Callable[[Any], Awaitable[None]]

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
RESTART: Final = 1012
TRY_LATER: Final = 1013

#: Events that may wait while a message of the connection is handled.
_MAX_EARLY: Final = 100


@dataclass(slots=True)
class Session:
    """A pairing, as one of its two sides sees it.

    Attributes:
        name: a random name. A code may be used again, a name is not.
        code: the one-time code.
        until: the time at which the session expires.
        peer: the other side, once it has connected.
        bytes: the number of bytes that both sides have sent.
    """

    name: str
    code: str = field(repr=False)
    until: float
    peer: Ref | None = None
    bytes: int = 0


@dataclass(slots=True)
class Budget:
    """The number of bytes that may wait for all clients of a process together.

    Attributes:
        limit: the maximum.
        used: the bytes that wait.
    """

    limit: int
    used: int = 0


class Socket:
    """A connection of this process.

    Args:
        send: the ``send`` of ASGI.
        number: the number of the connection in this process.
        address: the address that limits count.
        now: the current time.
        limit: the maximum number of bytes that may wait for this client.
        budget: the bytes that may wait for all clients.

    Attributes:
        session: the pairing that the connection takes part in.
        watches: the tokens that it watches for, each with the time at which the watch expires.
        askers: for each token that a target has used, the target and the time until which it waits for the answer.
        asking: the token that this connection itself has used, while it waits for the answer.
        asked: the connection that watches for that token.
        asking_until: the time until which it waits for the answer.
        idle_since: the time at which it last did something.
        errors: the number of its messages that were rejected in the current minute.
        errors_until: the time at which that minute ends.
        overrun: True if an event was lost because too many waited. The connection must be closed.
        closed: True if the connection is being closed. It handles and sends no more messages.
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

    def __init__(
        self, send: SendFunction, *, number: int, address: str, now: float, limit: int, budget: Budget
    ) -> None:
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
        """True if the connection has no session, watch or token."""
        return not (self.session or self.watches or self.askers or self.asking)

    @property
    def unsent(self) -> int:
        """The number of bytes that wait for the client."""
        return self._unsent

    def stalled(self, now: float) -> float:
        """Return for how many seconds the client has read nothing of what waits. Must be called regularly."""
        if not self._unsent or self._sent != self._seen:
            self._seen, self._seen_at = self._sent, now
        return now - self._seen_at

    def write(self, text: str) -> bool:
        """Send a text frame, after everything that waits already.

        Returns:
            False if there is no room for it, because the client reads too slowly. The connection must be closed.
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
        """Close the connection, after everything that waits.

        Args:
            code: the WebSocket close code.
            at_once: drop what waits. This also works on a connection that is being closed already.
        """
        if self.closed and not (at_once and self._unsent):
            return
        self.closed = True
        if at_once:
            self._abandon()
        self._outbox.append(({"type": "websocket.close", "code": code}, 0))
        self._begin()

    def release(self) -> None:
        """Forget what waits for a connection that is gone."""
        self.closed = True
        self._abandon()

    def hold(self) -> None:
        """Make events wait, while a message of the connection is handled."""
        self._early = deque()

    def held(self, event: Event) -> bool:
        """Keep an event if events must wait, and return True. If too many wait, the event is lost: see ``overrun``."""
        if self._early is None:
            return False
        if len(self._early) < _MAX_EARLY:
            self._early.append(event)
        else:
            self.overrun = True
        return True

    def unhold(self) -> deque[Event]:
        """Stop making events wait. Return those that did."""
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
        """Send what waits. A server that knows how much the client has read makes ``send`` wait; the rest is counted meanwhile."""
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
        except Exception:  # servers raise different errors if the client is gone; websocket.disconnect follows
            if self._turn is turn:
                self._writer = None
                self._abandon()
        finally:
            if self._turn is turn:
                self._turn = self._writer = None

    async def _close(self, message: dict[str, Any]) -> None:
        # autobahn, and with it plain daphne, rejects the close codes of a server. amesh_relay makes it accept them.
        try:
            await self._send(message)
        except asyncio.CancelledError:
            raise
        except Exception:
            await self._send({**message, "code": message["code"] + 3000})


#: Options that run a task at once until it waits. Unless the client is slow, that is until its end.
_EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def _start(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), **_EAGERLY)
