"""daphne with the limits of a relay. ``manage.py amesh_relay`` starts it.

daphne as it comes sends without asking whether the client reads, reads without asking whether the application keeps up, drops a
connection whose message is too long without a word, lets connections that say nothing stay, and can't send the codes with which a
server closes. Each is mended here through what daphne, autobahn and Twisted leave open to subclasses.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections import Counter
from functools import partial
from types import FunctionType
from typing import Any, Final

from . import conf, need_extra
from .addresses import LOCAL, network
from .hub.current import current_hub, stop_hub
from .hub.sockets import TOO_BIG

try:
    from daphne.server import Server  # before the rest of Twisted, for it decides on the reactor
except ImportError:
    raise need_extra("daphne") from None

from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import WebRequest
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.internet.interfaces import IPushProducer
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer

_reactor: Any = reactor

#: Messages that the application has not taken yet, beyond which no more is read.
_MOST_UNREAD: Final = 16
#: Bytes that the client has not taken yet, beyond which the application has to wait.
_MOST_UNSENT: Final = 16 * 1024
#: Pieces of one message. Many small ones take much more memory than they have bytes.
_MOST_PIECES: Final = 64
#: Connections beyond those that the relay lets in: to be told so, to look at /health, or to say nothing.
_SPARE_CONNECTIONS: Final = 500
_SPARE_PER_ADDRESS: Final = 20
#: For a request to arrive, and for the next one over the same connection.
_REQUEST_SECONDS: Final = 15
#: Connections that the kernel may keep until they are accepted. Twisted's 50 make clients wait for a second when many come at once.
_BACKLOG: Final = 1024
#: What stays open besides connections: files, Redis, what the event loop needs.
OTHER_FILES: Final = 100


class Inbox(asyncio.Queue[dict[str, Any]]):
    """What a client has sent and the application has not taken yet. Full, it keeps the client from sending.

    Args:
        protocol: of the client.
    """

    def __init__(self, protocol: RelayProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def _get(self) -> dict[str, Any]:
        item: dict[str, Any] = super()._get()
        if self._protocol.overfull and self.empty():
            self._protocol.overfull = False
            self._protocol.consider_reading()
        return item


@implementer(IPushProducer)
class RelayProtocol(WebSocketProtocol):  # type: ignore[misc]
    """A WebSocket that knows whether its client reads, and reads no faster than the application does."""

    failedByMe: bool
    message_data: Any

    # daphne looks connections up for every message, by a hash made of `id`, which Python's audit hooks get to see: much for nothing.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    overfull = False
    congested = False
    pieces = 0
    _drained: asyncio.Future[None] | None = None

    def connectionMade(self) -> None:
        """Begin. The part that spoke HTTP was told until now when the client does not read."""
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().connectionMade()

    # Reading.

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Not more than the application takes, and nothing once the connection is being closed."""
        if self.state != self.STATE_OPEN:
            return
        super().onMessage(payload, isBinary)
        if not self.overfull and self.application_queue.qsize() > _MOST_UNREAD:
            self.overfull = True
            self.consider_reading()

    def onMessageBegin(self, isBinary: bool) -> None:
        """Count the pieces."""
        self.pieces = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """Count the pieces."""
        self.pieces += 1
        if self.pieces > _MOST_PIECES and not self.failedByMe:
            self.failedByMe = True
            self.sendCloseFrame(code=TOO_BIG)
        super().onMessageFrameBegin(length)

    def onMessageEnd(self) -> None:
        """Without autobahn's observers, of which there are none here."""
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data), self.message_is_binary)
        self.message_data = None

    def dataReceived(self, data: bytes) -> None:
        """Without a line for a log that nobody reads, made at great expense."""
        self._dataReceived(data)

    def consider_reading(self) -> None:
        """Stop or go on."""
        if self.overfull or self.congested:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    # Sending.

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Without that line either, and at once where nothing waits: Twisted would ask the selector twice for each message."""
        connection = self.transport.transport
        if connection.connected and not (connection.dataBuffer or getattr(connection, "_tempDataBuffer", True)):
            sent = connection.writeSomeData(data)
            if isinstance(sent, int):  # else the connection is lost, and Twisted finds that out in its own time
                data = data[sent:]
        if data:
            self.transport.write(data)

    def serverClose(self, code: int | None = None) -> None:
        """With the codes of a server, too, which autobahn leaves to its inner parts. The application has counted it."""
        super().sendCloseFrame(code=1000 if code is None else code)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Count what is closed before the application hears of it: for its length, or because it is no WebSocket message."""
        if self.state == self.STATE_OPEN and not isReply:
            current_hub().counts[f"closed:{code}"] += 1
        super().sendCloseFrame(code=code, reasonUtf8=reasonUtf8, isReply=isReply)

    def pauseProducing(self) -> None:
        """The client does not read. What it asks for, such as the answer to a ping, would have to wait as well."""
        self.congested = True
        self.consider_reading()

    def resumeProducing(self) -> None:
        """It does again."""
        self.congested = False
        self.consider_reading()
        self._release()

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.congested = False
        self._release()

    async def drained(self) -> None:
        """Until the client has read most of what it was sent, or is gone."""
        if self.congested:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        """The connection is gone."""
        self.stopProducing()
        super().onClose(wasClean, code, reason)

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)


class BodylessRequest(WebRequest):  # type: ignore[misc]
    """A request to a relay has no body; daphne would write one of any length to the disk."""

    def gotLength(self, length: int | None) -> None:
        """See Twisted. None is a body that says its length as it goes."""
        if length:
            super().gotLength(length if length < 1024 else 0)
        else:
            super().gotLength(length)
        if length is None or length >= 1024:
            self.channel.transport.abortConnection()


class PatientRequest(WebRequest):  # type: ignore[misc]
    """A request to a whole project: once its head is here, it takes as long as the project lets it, and then the next one may come."""

    def gotLength(self, length: int | None) -> None:
        """See Twisted. The head is here."""
        self.channel.transport.born = math.inf
        super().gotLength(length)

    def finish(self) -> None:
        """See Twisted. It is answered."""
        if self.channel is not None:
            self.channel.transport.born = time.monotonic()
        super().finish()


class Connection(ProtocolWrapper):
    """A connection from its first byte on, whatever is spoken over it.

    Attributes:
        born: when it came, or when its last request was answered, where requests may take their time.
        address: of the client.
    """

    born = 0.0
    address = LOCAL


class Gate:
    """Who may connect, before a byte is read.

    Args:
        most: connections in all.
        per_address: connections of one address; 0 sets no limit.
    """

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._connections: dict[Connection, None] = {}
        self._counts: Counter[str] = Counter()

    def admits(self, address: str) -> bool:
        """Whether there is room for one more."""
        return len(self._connections) < self._most and not 0 < self._per_address <= self._counts[address]

    def registerProtocol(self, connection: Connection) -> None:
        """See :class:`twisted.protocols.policies.WrappingFactory`."""
        connection.born = time.monotonic()
        transport: Any = connection.transport
        transport.bufferSize = _MOST_UNSENT
        self._connections[connection] = None
        self._counts[connection.address] += 1

    def unregisterProtocol(self, connection: Connection) -> None:
        """See :class:`twisted.protocols.policies.WrappingFactory`."""
        if connection in self._connections:
            del self._connections[connection]
            self._counts[connection.address] -= 1
            if not self._counts[connection.address]:
                del self._counts[connection.address]

    def turn_out(self) -> None:
        """Those that have not asked for a WebSocket in time. That their client sends a byte now and then does not count."""
        latest = time.monotonic() - _REQUEST_SECONDS
        for connection in list(self._connections):
            if connection.born <= latest and not isinstance(connection.wrappedProtocol, WebSocketProtocol):
                connection.abortConnection()


class RelayServer(Server):  # type: ignore[misc]
    """See the module.

    Args:
        application: ASGI.
        host: to listen at.
        port: to listen at.
        files: how many files this process may have open.
        bodies: whether requests may have bodies. Those to a relay alone have none.
    """

    def __init__(self, application: Any, *, host: str, port: int, files: int, bodies: bool) -> None:
        settings = conf.relay_settings()
        proxied = conf.trusted_proxies(settings) > 0  # then all come from one address
        per_address = 0 if proxied else settings.CONNECTIONS_PER_ADDRESS
        self._gate = Gate(
            min(settings.MAX_CONNECTIONS + _SPARE_CONNECTIONS, files - OTHER_FILES),
            per_address + _SPARE_PER_ADDRESS if per_address else 0,
        )
        self._bodies = bodies
        super().__init__(
            application,
            endpoints=[
                f"{endpoint}:backlog={_BACKLOG}"
                for endpoint in build_endpoint_description_strings(host=host, port=port)
            ],
            websocket_max_message_size=settings.MAX_MESSAGE_BYTES,
            websocket_max_frame_size=settings.MAX_MESSAGE_BYTES,
            websocket_handshake_timeout=_REQUEST_SECONDS,
            ready_callable=self._ready,
            server_name="",
            verbosity=0,
        )

    def _ready(self) -> None:
        """The factories are made, and nobody has connected yet."""
        self.ws_factory.setProtocolOptions(failByDrop=False)
        protocol: Any = type("RelayProtocol", (RelayProtocol,), {})
        # autobahn copies its options to every connection and pretty-prints them. In the class they are there for all.
        for name in protocol.CONFIG_ATTRS:
            value = getattr(self.ws_factory, name)
            # A function that is asked as an option, such as the one for compression, must not become a method.
            setattr(protocol, name, staticmethod(value) if isinstance(value, FunctionType) else value)
        protocol.CONFIG_ATTRS = []
        self.ws_factory.protocol = protocol

        self.http_factory.timeOut = _REQUEST_SECONDS
        self.http_factory.buildProtocol = partial(self._admit, self.http_factory.buildProtocol)
        self._turn_out()
        gc.collect()
        gc.freeze()  # what is there now stays: not to be looked through again and again while thousands come and go
        _reactor.addSystemEventTrigger("before", "shutdown", self._say_goodbye)

    def _admit(self, build: Any, address: Any) -> Connection | None:
        """A connection, or None: then it is closed at once."""
        text = network(str(getattr(address, "host", ""))) or LOCAL
        if not self._gate.admits(text):
            return None
        protocol = build(address)
        protocol.requestFactory = PatientRequest if self._bodies else BodylessRequest
        connection = Connection(self._gate, protocol)  # type: ignore[arg-type]  # all of a factory that it needs
        connection.address = text
        return connection

    def _turn_out(self) -> None:
        self._gate.turn_out()
        _reactor.callLater(1, self._turn_out)

    def create_application(self, protocol: Any, scope: Any) -> Any:
        """As daphne does it, with an inbox that fills up."""
        if not isinstance(protocol, RelayProtocol):
            return super().create_application(protocol, scope)
        scope["asgi"] = {"version": "3.0"}
        inbox = Inbox(protocol)
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(
            self.application(scope=scope, receive=inbox.get, send=partial(self.handle_reply, protocol))
        )
        return inbox

    async def handle_reply(self, protocol: Any, message: Any) -> None:
        """As daphne does it, and whoever sends waits until the client reads."""
        await super().handle_reply(protocol, message)
        if message["type"] == "websocket.send" and protocol.congested:
            await protocol.drained()

    def _say_goodbye(self) -> Any:
        return defer.Deferred.fromFuture(asyncio.ensure_future(asyncio.wait_for(_stop_hub(), 5)))

    def kill_all_applications(self) -> Any:
        """As daphne does it, which stumbles over connections whose application has ended."""
        for protocol in [key for key, details in self.connections.items() if "application_instance" not in details]:
            del self.connections[protocol]
        return super().kill_all_applications()


async def _stop_hub() -> None:
    await stop_hub()
    await asyncio.sleep(0.1)  # for what was said last to get out
