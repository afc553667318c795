"""The server of a relay: daphne with limits for strangers. ``manage.py amesh_relay`` starts it.

:mod:`.private` makes daphne wait for slow clients, and read no faster than the relay does. This module decides who may connect, for
how long a client may ask for nothing, and what happens when the process stops.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable
from typing import Any, Final

from . import conf
from .addresses import LOCAL, Tally, network
from .hub.current import stop_hub
from .private import (  # before the imports of Twisted, because daphne chooses the reactor
    BodylessRequest,
    DaphneServer,
    PatientRequest,
    WebSocketProtocol,
    limit_unsent,
)

# isort: split
from twisted.internet import defer, reactor
from twisted.protocols.policies import ProtocolWrapper

_reactor: Any = reactor

#: Connections beyond those that the relay accepts: to be told that the relay is full, to look at /health, or to say nothing.
_SPARE_CONNECTIONS: Final = 500
_SPARE_PER_ADDRESS: Final = 20
#: Seconds for a request to arrive, and for the next one over the same connection.
_REQUEST_SECONDS: Final = 15
#: Files that stay open besides connections: for Redis, and for the event loop.
OTHER_FILES: Final = 100


class Connection(ProtocolWrapper):
    """A connection from its first byte on, for HTTP and WebSocket.

    Attributes:
        waiting_since: the time since when the client may ask for something; infinite while a request is answered.
        address: the address of the client.
    """

    waiting_since = 0.0
    address = LOCAL

    def request_arrived(self) -> None:
        """Note that the head of a request is here, and that the answer may take its time."""
        self.waiting_since = math.inf

    def request_answered(self) -> None:
        """Note that the next request may arrive."""
        self.waiting_since = time.monotonic()


class Gate:
    """Decides who may connect, before a byte is read.

    Args:
        limit: the maximum number of connections.
        tally: the connections of each address, with their limits.
    """

    def __init__(self, limit: int, tally: Tally) -> None:
        self._limit = limit
        self._tally = tally
        self._connections: dict[Connection, None] = {}

    def admits(self, address: str) -> bool:
        """Return True if an address may connect once more."""
        return len(self._connections) < self._limit and not self._tally.is_full(address)

    # A connection calls these two, as those of a twisted.protocols.policies.WrappingFactory.

    def registerProtocol(self, connection: Connection) -> None:
        """Count a connection that has been made."""
        connection.waiting_since = time.monotonic()
        limit_unsent(connection.transport)
        self._connections[connection] = None
        self._tally.add(connection.address)

    def unregisterProtocol(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        if connection in self._connections:
            del self._connections[connection]
            self._tally.remove(connection.address)

    def close_silent(self) -> None:
        """Close the connections that have not asked for anything in time. A byte now and then does not count."""
        latest = time.monotonic() - _REQUEST_SECONDS
        for connection in list(self._connections):
            if connection.waiting_since <= latest and not isinstance(connection.wrappedProtocol, WebSocketProtocol):
                connection.abortConnection()


class RelayServer(DaphneServer):
    """The server of one relay process.

    Args:
        application: the ASGI application.
        host: the address to listen on.
        port: the port to listen on.
        files: how many files this process may have open.
        bodies: True if requests may have bodies. Those to a relay alone have none.
    """

    def __init__(self, application: Any, *, host: str, port: int, files: int, bodies: bool) -> None:
        settings = conf.relay_settings()
        proxied = conf.trusted_proxies(settings) > 0  # all connections come from the address of the proxy
        per_address = 0 if proxied else settings.CONNECTIONS_PER_ADDRESS
        self._gate = Gate(
            min(settings.MAX_CONNECTIONS + _SPARE_CONNECTIONS, files - OTHER_FILES),
            Tally(per_address + _SPARE_PER_ADDRESS if per_address else 0, settings.ADDRESSES_PER_NETWORK),
        )
        self._request = PatientRequest if bodies else BodylessRequest
        super().__init__(
            application,
            host=host,
            port=port,
            max_message=settings.MAX_MESSAGE_BYTES,
            request_seconds=_REQUEST_SECONDS,
            admit=self._make_connection,
            on_ready=self._begin,
        )

    def _make_connection(self, address: Any, build: Callable[[Any], Any]) -> Connection | None:
        text = network(str(getattr(address, "host", ""))) or LOCAL
        if not self._gate.admits(text):
            return None
        protocol = build(address)
        protocol.requestFactory = self._request
        connection = Connection(self._gate, protocol)  # type: ignore[arg-type]  # it needs no more of a factory
        connection.address = text
        return connection

    def _begin(self) -> None:
        self._close_silent()
        gc.collect()
        gc.freeze()  # what exists now stays: the collector need not look at it while thousands of connections come and go
        _reactor.addSystemEventTrigger("before", "shutdown", self._say_goodbye)

    def _close_silent(self) -> None:
        self._gate.close_silent()
        _reactor.callLater(1, self._close_silent)

    def _say_goodbye(self) -> Any:
        return defer.Deferred.fromFuture(asyncio.ensure_future(asyncio.wait_for(_stop_hub(), 5)))


async def _stop_hub() -> None:
    await stop_hub()
    await asyncio.sleep(0.1)  # so that what was sent last leaves this process
