"""Pairings: targets that wait with a code, controllers that connect with it, and the messages between them (protocol.md §6).

Events: ``matched`` (a controller connected), ``data`` (a message to forward), ``done``, ``limit``, ``left`` (the session is over).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from typing import Final

from ..exchange.base import Event, Joined, Ref, Unavailable
from . import messages
from .hub import MAX_OWED, Handler, Hub, Listener
from .messages import Message
from .sockets import Session, Socket

_FAREWELL: Final = {
    "done": messages.DONE,
    "limit": messages.error("session_data_limit"),
    "left": messages.error("peer_disconnected"),
}


class Pairings:
    """The service that handles ``listen``, ``connect``, ``data`` and ``done``.

    Args:
        hub: the hub of this process.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # Kept until Redis can be reached again: the events that end sessions for other processes, and the sessions that are over.
        self._owed_events: deque[tuple[Ref, Event]] = deque(maxlen=MAX_OWED)
        self._owed_ends: deque[tuple[str, str]] = deque(maxlen=MAX_OWED)
        self.handlers: dict[str, Handler] = {
            "listen": self._listen,
            "connect": self._connect,
            "data": self._data,
            "done": self._done,
        }
        self.listeners: dict[str, Listener] = {
            "matched": self._on_matched,
            "data": self._on_data,
            "done": self._on_end,
            "limit": self._on_end,
            "left": self._on_end,
        }
        self.answers = {"matched": "left", "data": "left"}

    # Messages.

    async def _listen(self, socket: Socket, message: Message, size: int) -> None:
        hub = self._hub
        if _busy(socket):
            hub.refuse(socket, "invalid_message")
            return
        name = secrets.token_hex(8)
        socket.hold()
        refusal = await hub.ask(hub.exchange.open(message.key, name, hub.ref(socket), socket.address))
        if refusal is not None:
            hub.refuse(socket, refusal)
        elif socket.closed:
            await self._over(message.key, name)
        else:
            hub.counts["sessions"] += 1
            socket.session = Session(name, message.key, hub.clock() + hub.settings.MATCH_SECONDS)
            hub.write(socket, messages.SESSION_OPEN)
        hub.release(socket)

    async def _connect(self, socket: Socket, message: Message, size: int) -> None:
        hub = self._hub
        if _busy(socket):
            hub.refuse(socket, "invalid_message")
            return
        socket.hold()
        answer = await hub.ask(hub.exchange.join(message.key, hub.ref(socket), socket.address))
        if isinstance(answer, Joined):
            await self._meet(socket, message.key, answer)
        else:
            hub.refuse(socket, answer)
        hub.release(socket)

    async def _meet(self, socket: Socket, code: str, joined: Joined) -> None:
        """Match a controller with its target, unless one of them has just disconnected."""
        hub = self._hub
        me = hub.ref(socket)
        found = await hub.tell(joined.peer, Event("matched", joined.session, me))
        if found and not socket.closed:
            hub.counts["pairings"] += 1
            socket.session = Session(joined.session, code, hub.clock() + hub.settings.FINISH_SECONDS, peer=joined.peer)
            hub.write(socket, messages.PEER_FOUND)
            return
        await self._over(code, joined.session)
        if found:
            await hub.tell(joined.peer, Event("left", joined.session, me))
        else:
            hub.refuse(socket, "otc_not_found")

    async def _data(self, socket: Socket, message: Message, size: int) -> None:
        hub, session = self._hub, socket.session
        if session is None or session.peer is None:
            hub.ignore(socket)
            return
        session.bytes += size
        if session.bytes > hub.settings.MAX_SESSION_BYTES:
            hub.counts["refused:session_data_limit"] += 1
            await self._end(socket, session, "limit")
            hub.write(socket, _FAREWELL["limit"])
            return
        event = Event("data", session.name, hub.ref(socket), message.frame)
        if not await hub.tell(session.peer, event) and socket.session is session:
            await self._end(socket, session, "left")
            hub.write(socket, _FAREWELL["left"])

    async def _done(self, socket: Socket, message: Message, size: int) -> None:
        if socket.session is None:
            self._hub.ignore(socket)
            return
        if socket.session.peer is not None:  # otherwise the target stopped waiting
            self._hub.counts["finished"] += 1
        await self._end(socket, socket.session, "done")

    async def _end(self, socket: Socket, session: Session, kind: str) -> None:
        """End a session from this side, and tell the other side."""
        hub = self._hub
        self._forget(socket)
        if session.peer is not None:
            await hub.tell(session.peer, Event(kind, session.name, hub.ref(socket)))
        await self._over(session.code, session.name)

    async def _over(self, code: str, name: str) -> None:
        """Free the code: now, or when Redis can be reached again. Without that, the code expires by itself."""
        try:
            await self._hub.exchange.end(code, name)
        except Unavailable:
            self._owed_ends.append((code, name))

    def _forget(self, socket: Socket) -> None:
        socket.session = None
        socket.idle_since = self._hub.clock()

    # Events.

    def _on_matched(self, socket: Socket, event: Event) -> bool:
        session = socket.session
        if session is None or session.name != event.about or session.peer is not None:
            return False
        session.peer = event.sender
        session.until = self._hub.clock() + self._hub.settings.FINISH_SECONDS
        self._hub.write(socket, messages.PEER_FOUND)
        return True

    def _on_data(self, socket: Socket, event: Event) -> bool:
        session = socket.session
        if session is None or session.name != event.about or session.peer != event.sender:
            return False
        session.bytes += messages.length(event.frame)
        self._hub.write(socket, event.frame)
        return True

    def _on_end(self, socket: Socket, event: Event) -> bool:
        session = socket.session
        if session is None or session.name != event.about or session.peer != event.sender:
            return False
        self._forget(socket)
        self._hub.write(socket, _FAREWELL[event.kind])
        return True

    # The end of a session, of a connection, of another process; and the return of Redis.

    async def expire(self, socket: Socket, now: float) -> None:
        # The other side is told by its own process.
        session = socket.session
        if session is not None and session.until <= now:
            self._forget(socket)
            self._hub.write(socket, messages.error("otc_not_found") if session.peer is None else _FAREWELL["left"])
            self._hub.counts["expired"] += 1
            await self._over(session.code, session.name)

    async def leave(self, socket: Socket) -> None:
        if socket.session is not None:
            await self._end(socket, socket.session, "left")

    async def part(self, lost: Callable[[Ref], bool]) -> None:
        # The other sides may still be connected. They are told when Redis can be reached again.
        hub = self._hub
        for socket in list(hub.sockets.values()):
            session = socket.session
            if session is not None and session.peer is not None and lost(session.peer):
                self._forget(socket)
                hub.write(socket, _FAREWELL["left"])
                self._owed_events.append((session.peer, Event("left", session.name, hub.ref(socket))))
                await self._over(session.code, session.name)

    async def restore(self) -> None:
        # Targets that wait keep waiting, unless somebody else has taken their code meanwhile.
        hub = self._hub
        while self._owed_events:
            await hub.tell(*self._owed_events.popleft())
        for code, name in [self._owed_ends.popleft() for _ in range(len(self._owed_ends))]:
            await self._over(code, name)
        now = hub.clock()
        waiting = {
            socket.session.name: socket
            for socket in hub.sockets.values()
            if socket.session is not None and socket.session.peer is None
        }
        taken = await hub.exchange.restore_sessions(
            [
                (socket.session.code, name, hub.ref(socket), max(socket.session.until - now, 0.001))
                for name, socket in waiting.items()
                if socket.session is not None
            ]
        )
        for name in taken:
            socket = waiting[name]
            if socket.session is not None and socket.session.name == name and socket.session.peer is None:
                self._forget(socket)
                hub.write(socket, messages.error("otc_not_found"))

    def peers(self, socket: Socket) -> list[Ref]:
        return [socket.session.peer] if socket.session is not None and socket.session.peer is not None else []


def _busy(socket: Socket) -> bool:
    return socket.session is not None or socket.asking is not None
