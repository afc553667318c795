"""The Channels consumer: serves one connection, from its handshake to its end."""

from __future__ import annotations

import asyncio
from typing import Any

from . import conf, need_extra
from .addresses import client_address
from .failures import report
from .hub import messages
from .hub.current import current_hub
from .hub.hub import Hub
from .hub.sockets import FAILED, RESTART, TOO_BIG, Socket

try:
    from channels.consumer import AsyncConsumer
except ImportError:
    raise need_extra("channels") from None

__all__ = ["RelayConsumer"]


class RelayConsumer(AsyncConsumer):
    """The relay at ``/ws``. Mount it with :mod:`.routing`.

    It implements ASGI itself, and so avoids what Channels adds for other consumers: a task and a switch to the database thread for
    every message, and a channel of the layer for every connection.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        hub = current_hub()
        await receive()  # websocket.connect
        if not origin_allowed(scope, hub.settings):
            hub.counts["refused:origin"] += 1
            await send({"type": "websocket.close", "code": 1008})  # before accepting: HTTP 403
            return
        await send({"type": "websocket.accept"})
        address = client_address(scope, conf.trusted_proxies(hub.settings))
        socket = await hub.enter(send, address)
        try:
            await self._serve(hub, socket, receive)
        except asyncio.CancelledError:  # the server stops
            socket.close(RESTART)
            await asyncio.sleep(0)
            raise
        finally:
            await hub.leave(socket)
            socket.release()

    async def _serve(self, hub: Hub, socket: Socket, receive: Any) -> None:
        """Handle messages until the client is gone. Messages that arrive while the connection is being closed are ignored."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                socket.release()
                return
            if socket.closed:
                continue
            try:
                await self._handle(hub, socket, message.get("text"))
            except Exception as error:  # a bug; its text must not get into the log of the server
                report(error)
                hub.drop(socket, FAILED)

    async def _handle(self, hub: Hub, socket: Socket, text: str | None) -> None:
        if text is None:
            hub.refuse(socket, "invalid_message")
            return
        size = messages.length(text)
        if size > hub.settings.MAX_MESSAGE_BYTES:
            hub.drop(socket, TOO_BIG)
            return
        await hub.handle(socket, text, size)


def origin_allowed(scope: Any, settings: conf.RelaySettings) -> bool:
    """Return True if the client may connect: a program, which sends no Origin, or a web page that ALLOWED_ORIGINS lists.

    Any other web page would use up the limits of its visitor's address.
    """
    allowed = settings.ALLOWED_ORIGINS
    origins = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == b"origin"]
    return all(origin in allowed for origin in origins) or "*" in allowed
