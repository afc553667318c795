"""An ASGI application that is the relay and nothing else: ``/ws``, ``/health``, ``/metrics``."""

from __future__ import annotations

from typing import Any

from . import reports
from .consumer import RelayConsumer
from .hub.current import current_hub
from .reports import Report

__all__ = ["application"]

_websocket = RelayConsumer.as_asgi()
_NOT_FOUND = Report(
    404, "text/plain; charset=utf-8", b"Not found. This is an amesh relay; its WebSocket address ends in /ws.\n"
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve a connection, or a request."""
    if scope["type"] == "websocket":
        if scope["path"] == "/ws":
            await _websocket(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before accepting: HTTP 403
    elif scope["type"] == "http":
        report = await _report(scope)
        headers = [
            (b"content-type", report.content_type.encode()),
            (b"content-length", str(len(report.body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": report.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else report.body
        await send({"type": "http.response.body", "body": body})


async def _report(scope: Any) -> Report:
    if scope["method"] in ("GET", "HEAD"):
        if scope["path"] == "/health":
            return await reports.health(current_hub())
        if scope["path"] == "/metrics":
            return await reports.metrics(current_hub())
    return _NOT_FOUND
