"""A relay for tests, over real sockets. It pairs two sides, and is as malicious as a test asks it to be."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.pairing.pairing_world import Wire

#: A frame (text or bytes) that is sent instead of the proper one, or a number: the code that the connection is closed with.
Raw = str | bytes | int

ACK = json.dumps({"type": "ack", "message": "session_open"})
FOUND = json.dumps({"type": "peer_found"})
DONE = json.dumps({"type": "done"})


def error(code: object) -> str:
    return json.dumps({"type": "error", "code": code})


def data(payload: str) -> str:
    return json.dumps({"type": "data", "payload": payload})


class _Outbox:
    """The inbox of a side of :class:`tests.pairing.pairing_world.Wire`. What is put into it is sent."""

    def __init__(self) -> None:
        self.pending: list[str] = []

    def append(self, payload: str) -> None:
        self.pending.append(payload)

    def extend(self, payloads: list[str]) -> None:
        self.pending.extend(payloads)


@dataclass
class End:
    """The socket of one of the two devices."""

    socket: ServerConnection
    inbox: _Outbox = field(default_factory=_Outbox)

    async def flush(self) -> None:
        while self.inbox.pending:
            await send(self.socket, data(self.inbox.pending.pop(0)))


async def send(socket: ServerConnection, raw: Raw) -> None:
    with contextlib.suppress(ConnectionClosed):
        await (socket.close(raw) if isinstance(raw, int) else socket.send(raw))


@dataclass
class Session:
    """Two sockets, and the wire between them."""

    target: ServerConnection
    controller: ServerConnection | None = None
    wire: Wire | None = None


@dataclass
class HostileRelay:
    """A relay that a test can make malicious.

    Attributes:
        wire: makes the wire of a pairing, which handles its payloads.
        on_listen: messages that a target gets instead of the acknowledgement, one list for each ``listen``.
        on_connect: messages that a controller gets instead of being matched.
        on_match: messages that both sides get after ``peer_found``.
        on_data: messages that a side gets instead of a payload, by the number of the payload (0 is the first).
        tells: True if a side is told when the other side has left.
        frames: every frame that was received, as (side, text).
        sessions: the sessions by one-time code.
    """

    wire: Callable[[], Wire] = Wire
    on_listen: list[list[Raw]] = field(default_factory=list)
    on_connect: list[list[Raw]] = field(default_factory=list)
    on_match: list[Raw] = field(default_factory=list)
    on_data: dict[int, list[Raw]] = field(default_factory=dict)
    tells: bool = True
    frames: list[tuple[str, str]] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    url: str = ""
    _carried: int = 0

    @contextlib.asynccontextmanager
    async def running(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[HostileRelay]:
        """Run the relay on a free port of this machine."""
        async with serve(
            self._serve, "127.0.0.1", 0, ssl=tls, compression=None, close_timeout=0.5, max_size=None
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/ws"
            yield self

    async def _serve(self, socket: ServerConnection) -> None:
        session: Session | None = None
        try:
            async for text in socket:
                frame: dict[str, Any] = json.loads(text)
                self.frames.append((self._name(socket, session), str(text)))
                match frame["type"]:
                    case "listen":
                        session = await self._listen(socket, frame["otc"])
                    case "connect":
                        session = await self._connect(socket, frame["otc"])
                    case "data" if session:
                        await self._data(socket, session, frame["payload"])
                    case "done" if session:
                        await self._to_other(socket, session, DONE)
        except ConnectionClosed:
            pass
        finally:
            if session is not None and self.tells:
                await self._to_other(socket, session, error("peer_disconnected"))

    def _name(self, socket: ServerConnection, session: Session | None) -> str:
        return "nobody" if session is None else "target" if socket is session.target else "controller"

    async def _to_other(self, socket: ServerConnection, session: Session, raw: Raw) -> None:
        other = session.controller if socket is session.target else session.target
        if other is not None:
            await send(other, raw)

    async def _listen(self, socket: ServerConnection, code: str) -> Session | None:
        if self.on_listen:
            for raw in self.on_listen.pop(0):
                await send(socket, raw)
            return None
        if code in self.sessions:
            await send(socket, error("otc_in_use"))
            return None
        self.sessions[code] = session = Session(socket)
        await send(socket, ACK)
        return session

    async def _connect(self, socket: ServerConnection, code: str) -> Session | None:
        if self.on_connect:
            for raw in self.on_connect.pop(0):
                await send(socket, raw)
            return None
        session = self.sessions.get(code)
        if session is None or session.controller is not None:
            await send(socket, error("otc_not_found" if session is None else "peer_already_connected"))
            return None
        session.controller = socket
        for side in (session.target, socket):
            for raw in (FOUND, *self.on_match):
                await send(side, raw)
        session.wire = self.wire()
        ends = End(session.target), End(socket)
        session.wire.target, session.wire.controller = cast("Any", ends)
        session.wire.start()
        for end in ends:
            await end.flush()
        return session

    async def _data(self, socket: ServerConnection, session: Session, payload: str) -> None:
        number, self._carried = self._carried, self._carried + 1
        if number in self.on_data:
            for raw in self.on_data[number]:
                await self._to_other(socket, session, raw)
            return
        wire = session.wire
        assert wire is not None
        (wire.from_target if socket is session.target else wire.from_controller)(payload)
        for end in (wire.target, wire.controller):
            await cast("Any", end).flush()
