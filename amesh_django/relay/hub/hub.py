"""The hub: the connections of one process, and the way of messages and events between them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, Protocol, TypeVar

from ..addresses import Tally
from ..conf import RelaySettings
from ..exchange.base import Event, Exchange, Ref, Unavailable
from ..failures import report
from . import messages
from .messages import InvalidMessage, Message
from .sockets import FAILED, GOING_AWAY, POLICY, RESTART, TRY_LATER, Budget, SendFunction, Socket

T = TypeVar("T")

_SWEEP_SECONDS: Final = 1.0
_MINUTE: Final = 60.0
#: Messages to the exchange, of each kind, that are kept until Redis can be reached again.
MAX_OWED: Final = 10_000

Handler = Callable[[Socket, Message, int], Awaitable[None]]
Listener = Callable[[Socket, Event], bool]


class Service(Protocol):
    """A part of the relay: pairings or tokens.

    Attributes:
        handlers: the handlers of messages by type. They also get the length of the message.
        listeners: the listeners of events by kind. They return False if the connection takes no part in what the event is about.
        answers: the kind of event that tells the sender of an event that it did not arrive, by kind.
    """

    handlers: dict[str, Handler]
    listeners: dict[str, Listener]
    answers: dict[str, str]

    async def expire(self, socket: Socket, now: float) -> None:
        """End whatever took too long on a connection."""

    async def leave(self, socket: Socket) -> None:
        """Clean up after a connection that is gone."""

    async def part(self, lost: Callable[[Ref], bool]) -> None:
        """End what involves connections that cannot be reached any more: those for which *lost* returns True."""

    async def restore(self) -> None:
        """Tell the exchange again what it may have forgotten. Called when Redis can be reached again."""

    def peers(self, socket: Socket) -> list[Ref]:
        """Return the other connections that a connection is involved with."""


class Hub:
    """The connections of one process.

    Args:
        settings: the limits.
        exchange: what the processes of the relay agree on.
        clock: returns the time in seconds; monotonic in production.

    Attributes:
        sockets: the connections by number.
        services: the parts of the relay.
        counts: the numbers for the metrics. Rejections have keys like ``refused:CODE``, closes like ``closed:CODE``.
    """

    def __init__(self, settings: RelaySettings, exchange: Exchange, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.exchange = exchange
        self.clock = clock
        self.sockets: dict[int, Socket] = {}
        self.services: list[Service] = []
        self.counts: Counter[str] = Counter()
        self._handlers: dict[str, Handler] = {}
        self._listeners: dict[str, Listener] = {}
        self._answers: dict[str, str] = {}
        self._budget = Budget(settings.MAX_UNSENT_BYTES_IN_ALL)
        self._per_address = Tally(settings.CONNECTIONS_PER_ADDRESS, settings.ADDRESSES_PER_NETWORK)
        # Connections that are being closed, but whose client has not read everything yet.
        self._closing: set[Socket] = set()
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, service: Service) -> None:
        """Add a service."""
        self.services.append(service)
        self._handlers |= service.handlers
        self._listeners |= service.listeners
        self._answers |= service.answers

    # The process.

    def start(self) -> None:
        """Start. The event loop must be running."""
        self.exchange.start(self)
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._tick)

    async def stop(self) -> None:
        """Close all connections with the code for a restart, and stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sockets = list(self.sockets.values())
        for socket in sockets:
            socket.close(RESTART)
        await asyncio.gather(*(self.leave(socket) for socket in sockets))
        await self.exchange.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._tick)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self.spawn(self.sweep())

    async def sweep(self) -> None:
        """Close the connections that read too slowly or are idle, and end whatever took too long. Runs every second."""
        now = self.clock()
        for socket in list(self._closing):
            if socket.stalled(now) >= self.settings.UNSENT_SECONDS:
                socket.close(POLICY, at_once=True)
            if not socket.unsent:
                self._closing.discard(socket)
        for socket in list(self.sockets.values()):
            if socket.stalled(now) >= self.settings.UNSENT_SECONDS:
                self.drop(socket, POLICY, at_once=True)
            elif not socket.idle:
                socket.idle_since = now
                for service in self.services:
                    await service.expire(socket, now)
            elif now - socket.idle_since >= self.settings.IDLE_SECONDS:
                self.drop(socket, GOING_AWAY)

    def spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task of its own, and report its bugs."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report(error)

    # Connections.

    async def enter(self, send: SendFunction, address: str) -> Socket:
        """Add a connection that the server has accepted. If a limit is reached, the connection is closed instead."""
        settings = self.settings
        socket = Socket(
            send,
            number=next(self._numbers),
            address=address,
            now=self.clock(),
            limit=settings.MAX_UNSENT_BYTES,
            budget=self._budget,
        )
        await self.exchange.refresh()
        if len(self.sockets) + self.exchange.others >= settings.MAX_CONNECTIONS:
            self.counts["refused:too_many_connections"] += 1
            self._turn_away(socket)
        elif self._per_address.is_full(address):
            self.counts["refused:rate_limited"] += 1
            socket.write(messages.error("rate_limited"))
            self._turn_away(socket)
        else:
            self.sockets[socket.number] = socket
            self._per_address.add(address)
            self.counts["connections"] += 1
        return socket

    def _turn_away(self, socket: Socket) -> None:
        self.counts[f"closed:{TRY_LATER}"] += 1
        socket.close(TRY_LATER)

    async def leave(self, socket: Socket) -> None:
        """Remove a connection that is gone, or is being closed. Removing it again has no effect."""
        if self.sockets.pop(socket.number, None) is None:
            return
        self._per_address.remove(socket.address)
        for service in self.services:
            await service.leave(socket)

    def drop(self, socket: Socket, code: int, *, at_once: bool = False) -> None:
        """Close a connection.

        Args:
            socket: the connection.
            code: the WebSocket close code.
            at_once: drop the messages that wait for the client.
        """
        if not socket.closed:
            self.counts[f"closed:{code}"] += 1
            socket.close(code, at_once=at_once)
            if socket.unsent:
                self._closing.add(socket)
            self.spawn(self.leave(socket))

    # Messages.

    async def handle(self, socket: Socket, text: str, size: int) -> None:
        """Handle a text frame of a client."""
        try:
            message = messages.parse(text)
        except InvalidMessage as error:
            self.refuse(socket, error.code)
            return
        await self._handlers[message.kind](socket, message, size)

    def write(self, socket: Socket, text: str) -> None:
        """Send a frame. A connection that reads too slowly is closed, so that nobody waits for it and memory stays bounded."""
        if not socket.write(text):
            self.drop(socket, POLICY, at_once=True)

    def refuse(self, socket: Socket, code: str) -> None:
        """Reject the message of a client with an error. After too many errors the connection is closed."""
        self.counts[f"refused:{code}"] += 1
        self.write(socket, messages.error(code))
        self.ignore(socket)

    def ignore(self, socket: Socket) -> None:
        """Count a message without effect, such as one that was on its way when the session ended.

        The count starts again every minute, because a client that waits for hours for a token is rejected from time to time.
        """
        now = self.clock()
        if now >= socket.errors_until:
            socket.errors, socket.errors_until = 0, now + _MINUTE
        socket.errors += 1
        if socket.errors > self.settings.MAX_ERRORS:
            self.drop(socket, POLICY)

    async def ask(self, question: Awaitable[T]) -> T | str:
        """Return the answer of the exchange, or the error code ``relay_capacity`` if Redis cannot be reached."""
        try:
            return await question
        except Unavailable:
            return "relay_capacity"

    # Events.

    def ref(self, socket: Socket) -> Ref:
        """Return the name of a connection that is unique among all processes."""
        return Ref(self.exchange.process, socket.number)

    async def tell(self, to: Ref, event: Event) -> bool:
        """Send an event to another connection. Return False if that connection, or its process, is known to be gone."""
        if to.process == self.exchange.process:
            return self._deliver(to.number, event)
        try:
            return await self.exchange.send(to, event)
        except Unavailable:
            return False

    def arrive(self, number: int, event: Event) -> None:
        """Deliver an event that came from another process, or that had to wait. If nobody takes it, tell its sender."""
        if not self._deliver(number, event) and event.kind in self._answers:
            answer = Event(self._answers[event.kind], event.about, Ref(self.exchange.process, number))
            self.spawn(self._tell_quietly(event.sender, answer))

    async def _tell_quietly(self, to: Ref, event: Event) -> None:
        await self.tell(to, event)

    def _deliver(self, number: int, event: Event) -> bool:
        socket = self.sockets.get(number)
        if socket is None or socket.closed:
            return False
        if socket.held(event):
            return True
        listener = self._listeners.get(event.kind)
        if listener is None:
            return False
        try:
            return listener(socket, event)
        except Exception as error:  # a bug must not stop the events of other connections
            report(error)
            self.drop(socket, FAILED)
            return True

    def release(self, socket: Socket) -> None:
        """Deliver the events that waited while the message of a connection was handled."""
        if socket.overrun:
            self.drop(socket, POLICY)
        for event in socket.unhold():
            self.arrive(socket.number, event)

    # Calls from the exchange.

    def connection_count(self) -> int:
        return len(self.sockets)

    def remote_processes(self) -> set[str]:
        refs = (ref for socket in self.sockets.values() for service in self.services for ref in service.peers(socket))
        return {ref.process for ref in refs} - {self.exchange.process}

    async def on_loss(self) -> None:
        # A pairing with both sides at this process goes on.
        for service in self.services:
            await service.part(lambda ref: ref.process != self.exchange.process)

    async def on_return(self) -> None:
        for service in self.services:
            await service.restore()

    async def on_gone(self, processes: set[str]) -> None:
        for service in self.services:
            await service.part(lambda ref: ref.process in processes)
