"""One process of the relay: its connections, and the way of messages and events between them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, Protocol, TypeVar

from ..conf import RelaySettings
from ..exchange.base import Event, Exchange, Ref, Unavailable
from ..failures import report
from . import messages
from .messages import Message, Refused
from .sockets import FAILED, GOING_AWAY, POLICY, RESTART, TRY_LATER, Budget, Send, Socket

T = TypeVar("T")

_SWEEP_SECONDS: Final = 1.0
_MINUTE: Final = 60.0
#: What is kept to be said when the exchange is back, of each kind.
MOST_OWED: Final = 10_000

Handler = Callable[[Socket, Message, int], Awaitable[None]]
Listener = Callable[[Socket, Event], bool]


class Service(Protocol):
    """A part of what the relay does: pairings, tokens.

    Attributes:
        handlers: for its messages, by type. They get the length of the message too.
        listeners: for its events, by kind. They return False if the event is about nothing that the connection takes part in.
        answers: what the sender of an event is told if that did not arrive, by kind.
    """

    handlers: dict[str, Handler]
    listeners: dict[str, Listener]
    answers: dict[str, str]

    async def expire(self, socket: Socket, now: float) -> None:
        """End what has lasted too long."""

    async def leave(self, socket: Socket) -> None:
        """The connection is no more."""

    async def part(self, lost: Callable[[Ref], bool]) -> None:
        """The connections to which *lost* applies can't be reached any more."""

    async def restore(self) -> None:
        """The exchange has come back and may have forgotten everything."""

    def peers(self, socket: Socket) -> list[Ref]:
        """Whom the connection has to do with."""


class Hub:
    """See the module.

    Args:
        settings: the limits.
        exchange: what the processes agree on.
        clock: seconds, monotonic in production.

    Attributes:
        sockets: the connections, by number.
        services: what it does.
        counts: for the metrics: what has happened so far; refusals under ``refused:CODE``.
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
        self._per_address: Counter[str] = Counter()
        # Being closed, but the client has not read yet what it was told before.
        self._closing: set[Socket] = set()
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, service: Service) -> None:
        """Do that as well."""
        self.services.append(service)
        self._handlers |= service.handlers
        self._listeners |= service.listeners
        self._answers |= service.answers

    # The process.

    def start(self) -> None:
        """Begin. The event loop runs."""
        self.exchange.start(self)
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._tick)

    async def stop(self) -> None:
        """End: all clients are told to come back later."""
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
        """End what has lasted too long."""
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
        """Do something besides."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report(error)

    # Connections.

    async def enter(self, send: Send, address: str) -> Socket:
        """A connection that has been accepted. It may be closed again already, for want of room."""
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
        elif 0 < settings.CONNECTIONS_PER_ADDRESS <= self._per_address[address]:
            self.counts["refused:rate_limited"] += 1
            socket.write(messages.error("rate_limited"))
            self._turn_away(socket)
        else:
            self.sockets[socket.number] = socket
            self._per_address[address] += 1
            self.counts["connections"] += 1
        return socket

    def _turn_away(self, socket: Socket) -> None:
        self.counts[f"closed:{TRY_LATER}"] += 1
        socket.close(TRY_LATER)

    async def leave(self, socket: Socket) -> None:
        """A connection is no more, or is being closed. To say so twice does no harm."""
        if self.sockets.pop(socket.number, None) is None:
            return
        self._per_address[socket.address] -= 1
        if not self._per_address[socket.address]:
            del self._per_address[socket.address]
        for service in self.services:
            await service.leave(socket)

    def drop(self, socket: Socket, code: int, *, at_once: bool = False) -> None:
        """Close a connection."""
        if not socket.closed:
            self.counts[f"closed:{code}"] += 1
            socket.close(code, at_once=at_once)
            if socket.unsent:
                self._closing.add(socket)
            self.spawn(self.leave(socket))

    # What they say.

    async def handle(self, socket: Socket, text: str, size: int) -> None:
        """A text frame of a client."""
        try:
            message = messages.parse(text)
        except Refused as refusal:
            self.refuse(socket, refusal.code)
            return
        await self._handlers[message.kind](socket, message, size)

    def write(self, socket: Socket, text: str) -> None:
        """Send a frame. Whoever does not read is closed: nobody else is to wait, and memory is not to fill up."""
        if not socket.write(text):
            self.drop(socket, POLICY, at_once=True)

    def refuse(self, socket: Socket, code: str) -> None:
        """Tell a client that its message is refused. After too many of these the connection is closed."""
        self.counts[f"refused:{code}"] += 1
        self.write(socket, messages.error(code))
        self.ignore(socket)

    def ignore(self, socket: Socket) -> None:
        """A message that has no effect: what was on its way when a session ended, or worse.

        They are counted by the minute: who waits for hours, for a token that somebody else watches for, is refused now and then.
        """
        now = self.clock()
        if now >= socket.errors_until:
            socket.errors, socket.errors_until = 0, now + _MINUTE
        socket.errors += 1
        if socket.errors > self.settings.MAX_ERRORS:
            self.drop(socket, POLICY)

    async def ask(self, question: Awaitable[T]) -> T | str:
        """What the exchange answers; ``relay_capacity`` if it can't be reached."""
        try:
            return await question
        except Unavailable:
            return "relay_capacity"

    # What they cause at each other.

    def ref(self, socket: Socket) -> Ref:
        """Its name among all processes."""
        return Ref(self.exchange.process, socket.number)

    async def tell(self, to: Ref, event: Event) -> bool:
        """Tell another connection. False if it is no more; True if it is told, or is of another process that will try."""
        if to.process == self.exchange.process:
            return self._deliver(to.number, event)
        try:
            return await self.exchange.send(to, event)
        except Unavailable:
            return False

    def arrive(self, number: int, event: Event) -> None:
        """An event that came from afar, or had to wait."""
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
        except Exception as error:  # a bug is not to take the way to the other processes along
            report(error)
            self.drop(socket, FAILED)
            return True

    def release(self, socket: Socket) -> None:
        """What its message meant is known now: it is told what happened meanwhile."""
        if socket.overrun:
            self.drop(socket, POLICY)
        for event in socket.unhold():
            self.arrive(socket.number, event)

    # What the exchange says.

    def connection_count(self) -> int:
        """See :class:`.exchange.Local`."""
        return len(self.sockets)

    def remote_processes(self) -> set[str]:
        """See :class:`.exchange.Local`."""
        refs = (ref for socket in self.sockets.values() for service in self.services for ref in service.peers(socket))
        return {ref.process for ref in refs} - {self.exchange.process}

    async def on_loss(self) -> None:
        """See :class:`.exchange.Local`. What has both sides here goes on."""
        for service in self.services:
            await service.part(lambda ref: ref.process != self.exchange.process)

    async def on_return(self) -> None:
        """See :class:`.exchange.Local`."""
        for service in self.services:
            await service.restore()

    async def on_gone(self, processes: set[str]) -> None:
        """See :class:`.exchange.Local`."""
        for service in self.services:
            await service.part(lambda ref: ref.process in processes)
