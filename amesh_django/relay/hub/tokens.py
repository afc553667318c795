"""Bootstrap tokens: controllers that watch for a token, and targets that use it (protocol.md §7).

Events: ``init`` (a target used the token), ``answer`` (the watcher answered), ``unwatched`` (the watcher disconnected without an
answer), ``undelivered`` (the watcher was gone before ``init`` arrived).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from ..exchange.base import Event, Ref, Unavailable
from . import messages
from .hub import MAX_OWED, Handler, Hub, Listener
from .messages import Message
from .sockets import Socket


class Tokens:
    """The service that handles the ``bootstrap_*`` messages.

    Args:
        hub: the hub of this process.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # Kept until Redis can be reached again: calls that end a watch, or that restore a token that nobody received.
        self._owed: deque[Callable[[], Awaitable[None]]] = deque(maxlen=MAX_OWED)
        self.handlers: dict[str, Handler] = {
            "bootstrap_watch": self._watch,
            "bootstrap_init": self._init,
            "bootstrap_ack": self._answer,
            "bootstrap_reject": self._answer,
        }
        self.listeners: dict[str, Listener] = {
            "init": self._on_init,
            "answer": self._on_answer,
            "unwatched": self._on_unwatched,
            "undelivered": self._on_unwatched,
        }
        self.answers = {"init": "undelivered"}

    # Messages.

    async def _watch(self, socket: Socket, message: Message, size: int) -> None:
        hub, jti = self._hub, message.key
        if jti not in socket.watches and len(socket.watches) >= hub.settings.WATCHES_PER_CONNECTION:
            hub.refuse(socket, "relay_capacity")
            return
        socket.hold()
        refusal = await hub.ask(hub.exchange.watch(jti, hub.ref(socket), socket.address))
        if refusal is not None:
            if refusal == "jti_already_watched":
                socket.idle_since = hub.clock()  # it asks again from time to time, until the other watcher is gone
            hub.refuse(socket, refusal)
        elif socket.closed:
            await self._free(partial(hub.exchange.unwatch, jti, hub.ref(socket)))
        else:
            hub.counts["watches"] += 1
            socket.watches[jti] = hub.clock() + hub.settings.WATCH_SECONDS
            hub.write(socket, messages.watching(jti))
        hub.release(socket)

    async def _init(self, socket: Socket, message: Message, size: int) -> None:
        hub, jti = self._hub, message.key
        if socket.session is not None or socket.asking is not None:
            hub.refuse(socket, "invalid_message")
            return
        watcher = await hub.ask(hub.exchange.use(jti, socket.address))
        if watcher == "rate_limited":  # about the address, not the token: the target may try again
            hub.refuse(socket, watcher)
            return
        if isinstance(watcher, str):
            self._reject(socket, watcher)
            return
        # Set before the event is sent, because the answer may arrive before `tell` returns.
        socket.asking = jti
        socket.asked = watcher
        socket.asking_until = hub.clock() + hub.settings.FINISH_SECONDS
        if not socket.closed and await hub.tell(watcher, Event("init", jti, hub.ref(socket), message.frame)):
            hub.counts["bootstraps"] += 1
            return
        await self._free(partial(hub.exchange.unuse, jti))
        if socket.asking == jti:
            socket.asking = None
            self._reject(socket, "no_watcher")

    async def _answer(self, socket: Socket, message: Message, size: int) -> None:
        hub, jti = self._hub, message.key
        asker = socket.askers.pop(jti, None)
        if asker is None:
            hub.refuse(socket, "invalid_jti")
            return
        socket.watches.pop(jti, None)
        if message.kind == "bootstrap_reject":  # the token was not used: its owner still can
            await self._free(partial(hub.exchange.unuse, jti))
        await hub.tell(asker[0], Event("answer", jti, hub.ref(socket), message.frame))
        await self._free(partial(hub.exchange.unwatch, jti, hub.ref(socket)))

    async def _free(self, call: Callable[[], Awaitable[None]]) -> None:
        """End a watch, or restore a token that nobody received: now, or when Redis can be reached again."""
        try:
            await call()
        except Unavailable:
            self._owed.append(call)

    def _reject(self, socket: Socket, code: str) -> None:
        self._hub.counts[f"refused:{code}"] += 1
        self._hub.write(socket, messages.rejected(code))
        self._hub.ignore(socket)

    # Events.

    def _on_init(self, socket: Socket, event: Event) -> bool:
        if event.about not in socket.watches or event.about in socket.askers:
            return False
        socket.askers[event.about] = (event.sender, self._hub.clock() + self._hub.settings.FINISH_SECONDS)
        self._hub.write(socket, event.frame)
        return True

    def _on_answer(self, socket: Socket, event: Event) -> bool:
        if socket.asking != event.about or socket.asked != event.sender:
            return False
        self._stop_asking(socket)
        self._hub.write(socket, event.frame)
        return True

    def _on_unwatched(self, socket: Socket, event: Event) -> bool:
        if socket.asking != event.about or socket.asked != event.sender:
            return False
        self._stop_asking(socket)
        if event.kind == "undelivered":
            self._reject(socket, "no_watcher")
            self._hub.spawn(self._free(partial(self._hub.exchange.unuse, event.about)))
        else:
            self._hub.write(socket, messages.error("peer_disconnected"))
        return True

    def _stop_asking(self, socket: Socket) -> None:
        socket.asking = socket.asked = None
        socket.idle_since = self._hub.clock()

    # The end of a wait, of a connection, of another process; and the return of Redis.

    async def expire(self, socket: Socket, now: float) -> None:
        if socket.asking is not None and socket.asking_until <= now:
            self._stop_asking(socket)
            self._hub.write(socket, messages.error("peer_disconnected"))
        if socket.watches:
            for jti in [jti for jti, until in socket.watches.items() if until <= now]:
                del socket.watches[jti]
        if socket.askers:
            for jti in [jti for jti, (_, until) in socket.askers.items() if until <= now]:
                del socket.askers[jti]

    async def leave(self, socket: Socket) -> None:
        hub, me = self._hub, self._hub.ref(socket)
        askers, socket.askers = socket.askers, {}
        watches, socket.watches = socket.watches, {}
        socket.asking = None
        for jti, (asker, _) in askers.items():
            await hub.tell(asker, Event("unwatched", jti, me))
        for jti in watches:
            await self._free(partial(hub.exchange.unwatch, jti, me))

    async def part(self, lost: Callable[[Ref], bool]) -> None:
        for socket in list(self._hub.sockets.values()):
            if socket.asking is not None and socket.asked is not None and lost(socket.asked):
                self._stop_asking(socket)
                self._hub.write(socket, messages.error("peer_disconnected"))
            for jti in [jti for jti, (asker, _) in socket.askers.items() if lost(asker)]:
                del socket.askers[jti]

    async def restore(self) -> None:
        hub = self._hub
        for call in [self._owed.popleft() for _ in range(len(self._owed))]:
            await self._free(call)
        now = hub.clock()
        await hub.exchange.restore_watches(
            [
                (jti, hub.ref(socket), until - now)
                for socket in hub.sockets.values()
                for jti, until in socket.watches.items()
                if until > now
            ]
        )

    def peers(self, socket: Socket) -> list[Ref]:
        return [socket.asked] if socket.asking is not None and socket.asked is not None else []
