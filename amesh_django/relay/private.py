"""All that the relay takes from private parts of daphne, autobahn and Twisted.

The public API of the three lacks what a server for strangers needs: to wait for clients that read slowly, to read no faster than
the application does, to say that a message is too long, to close with the codes of a server, to spend little memory on a connection.
The subclasses in this module override the internals that decide about it. :mod:`.server` adds the limits, with public API only.

:data:`PRIVATE` lists every private name, and why the relay needs it. Any release may rename any of them. Therefore the extra
``relay`` in pyproject.toml allows no release that was not tried, and a test reports the names that the installed releases do not
have. To allow a new release: raise the bounds, run the tests, adapt this module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Final, NamedTuple

from . import need_extra
from .hub.current import current_hub
from .hub.sockets import POLICY, TOO_BIG

try:
    from daphne.server import Server  # before all other imports of Twisted, because it chooses the reactor
except ImportError:
    raise need_extra("daphne") from None

from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import WebRequest
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = [
    "PRIVATE",
    "BodylessRequest",
    "DaphneServer",
    "PatientRequest",
    "RelayProtocol",
    "WebSocketProtocol",
    "limit_unsent",
]

#: Messages that the application has not taken yet. When there are more, the relay stops reading from the client.
_MAX_UNREAD: Final = 16
#: Fragments of one message. Many small ones take much more memory than they have bytes.
_MAX_FRAGMENTS: Final = 64
#: Pings and pongs of a connection in a minute. A program sends one every few seconds, and many would cost all others their time.
_MAX_CONTROLS: Final = 60
#: Bytes that the client has not read yet. When there are more, the application waits.
_MAX_UNSENT: Final = 16 * 1024
#: Connections that the kernel may keep until they are accepted. With Twisted's default of 50, clients wait for a second when many
#: connect at the same time.
_BACKLOG: Final = 1024
#: Bytes of the body of a request. Nothing that the relay serves has one.
_MAX_BODY: Final = 1024


class Private(NamedTuple):
    """Private names with one reason.

    Attributes:
        owner: a module, a class or a function, as :func:`pkgutil.resolve_name` takes it.
        names: attributes of the owner or of its instances; parameters of a function.
        why: the reason.
    """

    owner: str
    names: tuple[str, ...]
    why: str


_SERVER: Final = "daphne.server:Server"
_SOCKET: Final = "daphne.ws_protocol:WebSocketProtocol"

#: Classes of daphne are private as a whole: only its command line is documented.
PRIVATE: Final = (
    Private(f"{_SERVER}.__init__", ("application", "endpoints"), "to start daphne without its command line"),
    Private(f"{_SERVER}.__init__", ("ready_callable",), "to change the factories before the first connection"),
    Private(f"{_SERVER}.__init__", ("server_name", "verbosity"), "to send no Server header, and to log nothing"),
    Private(f"{_SERVER}.__init__", ("websocket_handshake_timeout",), "to close connections that ask for nothing"),
    Private(f"{_SERVER}.__init__", ("websocket_max_frame_size", "websocket_max_message_size"), "to bound a message"),
    Private(_SERVER, ("run", "abort_start"), "to run, and to know that the address could not be used"),
    Private(_SERVER, ("ws_factory", "http_factory"), "to change what daphne has no parameters for"),
    Private(
        _SERVER, ("application", "connections", "create_application"), "to give the application an inbox that fills up"
    ),
    Private(_SERVER, ("handle_reply",), "to make the application wait for a client that reads slowly"),
    Private(_SERVER, ("kill_all_applications",), "because it fails if an application has ended already"),
    Private("daphne.endpoints", ("build_endpoint_description_strings",), "to add a backlog to the address"),
    Private("daphne.http_protocol:HTTPFactory", ("buildProtocol",), "to reject a connection before a byte is read"),
    Private("daphne.http_protocol:HTTPFactory", ("timeOut",), "to close connections that ask for nothing"),
    Private(
        "daphne.http_protocol:WebRequest", ("channel", "gotLength"), "to reject a body before daphne writes it to disk"
    ),
    Private("daphne.http_protocol:WebRequest", ("finish",), "to know when the next request may be awaited"),
    Private("daphne.ws_protocol:WebSocketFactory", ("protocol",), "to make connections with RelayProtocol"),
    Private("daphne.ws_protocol:WebSocketFactory", ("setProtocolOptions",), "to say why a message is too long"),
    Private(_SOCKET, ("__eq__", "__hash__"), "because daphne's are slow, and run for every message"),
    Private(_SOCKET, ("application_queue", "onMessage"), "to stop reading when the inbox is full"),
    Private(_SOCKET, ("onClose",), "to let the application go on when the client is gone"),
    Private(_SOCKET, ("STATE_OPEN", "state"), "to ignore messages of a connection that is being closed"),
    Private(_SOCKET, ("sendCloseFrame", "serverClose"), "to count closes, and to close with the codes of a server"),
    Private(_SOCKET, ("failedByMe", "onMessageBegin", "onMessageFrameBegin"), "to close on too many fragments"),
    Private(_SOCKET, ("message_data", "message_is_binary", "onMessageEnd"), "to skip observers that do not exist"),
    Private(_SOCKET, ("_dataReceived", "dataReceived"), "to skip a log line that is costly and never shown"),
    Private(_SOCKET, ("sendData",), "to skip such a log line, and to write at once"),
    Private(_SOCKET, ("CONFIG_ATTRS",), "to keep the options in the class, and not in every connection"),
    Private("twisted.internet.tcp:Server", ("bufferSize",), "to notice early that a client reads slowly"),
    Private(
        "twisted.internet.tcp:Server", ("_tempDataBuffer", "connected", "dataBuffer"), "to know that nothing waits"
    ),
    Private("twisted.internet.tcp:Server", ("writeSomeData",), "to write at once"),
    Private(
        "twisted.protocols.policies:ProtocolWrapper", ("registerProtocol", "unregisterProtocol"), "to count connections"
    ),
    Private("twisted.web.http:HTTPChannel", ("requestFactory",), "to make requests with the classes of this module"),
)


class Inbox(asyncio.Queue[dict[str, Any]]):
    """The messages of a client that the application has not taken yet. When it is full, the relay stops reading from the client.

    Args:
        protocol: the connection of the client.
    """

    def __init__(self, protocol: RelayProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    async def get(self) -> dict[str, Any]:
        item = await super().get()
        if self._protocol.overfull and self.empty():
            self._protocol.overfull = False
            self._protocol.consider_reading()
        return item


@implementer(IPushProducer)
class RelayProtocol(WebSocketProtocol):  # type: ignore[misc]
    """A WebSocket that knows whether its client reads, and that reads no faster than the application does."""

    failedByMe: bool
    message_data: Any

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    overfull = False
    congested = False
    fragments = 0
    controls = 0
    controls_until = 0.0
    _drained: asyncio.Future[None] | None = None

    def connectionMade(self) -> None:
        # Until now, the part of daphne that speaks HTTP was notified when the client does not read.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().connectionMade()

    # Reading.

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.state != self.STATE_OPEN:
            return
        super().onMessage(payload, isBinary)
        if not self.overfull and self.application_queue.qsize() > _MAX_UNREAD:
            self.overfull = True
            self.consider_reading()

    def onMessageBegin(self, isBinary: bool) -> None:
        self.fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        self.fragments += 1
        if self.fragments > _MAX_FRAGMENTS and not self.failedByMe:
            self.failedByMe = True
            self.sendCloseFrame(code=TOO_BIG)
        super().onMessageFrameBegin(length)

    def onPing(self, payload: bytes) -> None:
        if self._counts_control():
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        if self._counts_control():
            super().onPong(payload)

    def _counts_control(self) -> bool:
        """Count a ping or pong. Close the connection if it sends too many."""
        now = time.monotonic()
        if now >= self.controls_until:
            self.controls, self.controls_until = 0, now + 60
        self.controls += 1
        if self.controls > _MAX_CONTROLS and not self.failedByMe:
            self.failedByMe = True
            self.sendCloseFrame(code=POLICY)
        return self.controls <= _MAX_CONTROLS

    def onMessageEnd(self) -> None:
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data), self.message_is_binary)
        self.message_data = None

    def dataReceived(self, data: bytes) -> None:
        self._dataReceived(data)

    def consider_reading(self) -> None:
        """Stop reading from the client, or go on."""
        if self.overfull or self.congested:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    # Sending.

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        # At once if nothing waits: Twisted would ask the selector twice for each message.
        connection = self.transport.transport
        if connection.connected and not (connection.dataBuffer or getattr(connection, "_tempDataBuffer", True)):
            sent = connection.writeSomeData(data)
            if isinstance(sent, int):  # otherwise the connection is lost, which Twisted notices by itself
                data = data[sent:]
        if data:
            self.transport.write(data)

    def serverClose(self, code: int | None = None) -> None:
        # The public sendClose() of autobahn rejects the codes of a server. The application has counted this close.
        super().sendCloseFrame(code=1000 if code is None else code)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        # autobahn closes before the application hears of it: the message is too long, or no valid WebSocket message.
        if self.state == self.STATE_OPEN and not isReply:
            current_hub().counts[f"closed:{code}"] += 1
        super().sendCloseFrame(code=code, reasonUtf8=reasonUtf8, isReply=isReply)

    def pauseProducing(self) -> None:
        """The client does not read. Reading stops as well, because answers, such as those to a ping, would have to wait."""
        self.congested = True
        self.consider_reading()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self.congested = False
        self.consider_reading()
        self._release()

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.congested = False
        self._release()

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent, or is gone."""
        if self.congested:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.stopProducing()
        super().onClose(wasClean, code, reason)

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)


class BodylessRequest(WebRequest):  # type: ignore[misc]
    """A request to a relay, which has no body. daphne would write a body of any length to disk."""

    def gotLength(self, length: int | None) -> None:
        # None: the body says its length as it arrives.
        too_long = length is None or length >= _MAX_BODY
        super().gotLength(0 if length and too_long else length)
        if too_long:
            self.channel.transport.abortConnection()


class PatientRequest(WebRequest):  # type: ignore[misc]
    """A request to a whole project. Once its head has arrived, it takes as long as the project lets it."""

    def gotLength(self, length: int | None) -> None:
        self.channel.transport.request_arrived()
        super().gotLength(length)

    def finish(self) -> None:
        if self.channel is not None:
            self.channel.transport.request_answered()
        super().finish()


class DaphneServer(Server):  # type: ignore[misc]
    """daphne with the classes of this module.

    Args:
        application: the ASGI application.
        host: the address to listen on.
        port: the port to listen on.
        max_message: the maximum number of bytes of a message.
        request_seconds: the time that a request may take to arrive.
        admit: called with each client's address and a function that makes its connection. It returns a protocol, or None to
            close the connection at once.
        on_ready: called before the first connection is accepted.
    """

    def __init__(
        self,
        application: Any,
        *,
        host: str,
        port: int,
        max_message: int,
        request_seconds: int,
        admit: Callable[[Any, Callable[[Any], Any]], Any],
        on_ready: Callable[[], None],
    ) -> None:
        self._request_seconds = request_seconds
        self._admit = admit
        self._on_ready = on_ready
        super().__init__(
            application,
            endpoints=[
                f"{endpoint}:backlog={_BACKLOG}"
                for endpoint in build_endpoint_description_strings(host=host, port=port)
            ],
            websocket_max_message_size=max_message,
            websocket_max_frame_size=max_message,
            websocket_handshake_timeout=request_seconds,
            ready_callable=self._ready,
            server_name="",
            verbosity=0,
        )

    def _ready(self) -> None:
        self.ws_factory.setProtocolOptions(failByDrop=False)
        protocol: Any = type("RelayProtocol", (RelayProtocol,), {})
        # autobahn copies its options to every connection, and formats them for its log.
        for name in protocol.CONFIG_ATTRS:
            value = getattr(self.ws_factory, name)
            # A function that is an option, such as the one for compression, must not become a method.
            setattr(protocol, name, staticmethod(value) if isinstance(value, FunctionType) else value)
        protocol.CONFIG_ATTRS = []
        self.ws_factory.protocol = protocol
        self.http_factory.timeOut = self._request_seconds
        build = self.http_factory.buildProtocol
        self.http_factory.buildProtocol = lambda address: self._admit(address, build)
        self._on_ready()

    def create_application(self, protocol: Any, scope: Any) -> Any:
        if not isinstance(protocol, RelayProtocol):
            return super().create_application(protocol, scope)
        scope["asgi"] = {"version": "3.0"}
        inbox = Inbox(protocol)
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(
            self.application(scope=scope, receive=inbox.get, send=partial(self.handle_reply, protocol))
        )
        return inbox

    async def handle_reply(self, protocol: Any, message: Any) -> None:
        await super().handle_reply(protocol, message)
        if message["type"] == "websocket.send" and protocol.congested:
            await protocol.drained()

    def kill_all_applications(self) -> Any:
        for protocol in [key for key, details in self.connections.items() if "application_instance" not in details]:
            del self.connections[protocol]
        return super().kill_all_applications()


def limit_unsent(transport: Any) -> None:
    """Make a connection notice early that its client reads slowly."""
    transport.bufferSize = _MAX_UNSENT
