"""The WebSocket of a page: it says that something has changed. What that is, the page asks by HTTP, as it does without a WebSocket."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest
from django.http.cookie import parse_cookie

from amesh_django.models import PairingSession
from authmesh.protocol.errors import AmeshError

from . import sessions

try:
    from channels.consumer import AsyncConsumer
    from channels.db import database_sync_to_async
except ImportError:
    raise ImportError(
        "The WebSocket of pairings needs channels, which is not installed. Run: pip install 'amesh-django[relay]'"
    ) from None

__all__ = ["PairingConsumer"]

#: Seconds between two looks at the row, and between two looks at the session of the person.
INTERVAL_SECONDS = 0.3
SESSION_SECONDS = 5.0


class PairingConsumer(AsyncConsumer):
    """Tells one page of its pairing. Mount it with :mod:`.routing`.

    It accepts the person whose pairing it is, on a page of the same host. It needs no channel layer, and no middleware of Channels.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()  # websocket.connect
        row = await _allowed(scope) if is_same_origin(scope) else None
        if row is None:
            await send({"type": "websocket.close", "code": 1008})  # before accepting: HTTP 403
            return
        await send({"type": "websocket.accept"})
        gone = asyncio.ensure_future(_until_gone(receive))
        telling = asyncio.ensure_future(_tell(scope, send))
        done, _ = await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, telling):
            task.cancel()
        await asyncio.gather(gone, telling, return_exceptions=True)
        if gone not in done:
            await send({"type": "websocket.close", "code": 1000})


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass  # a page has nothing to say


async def _tell(scope: Any, send: Any) -> None:
    """Send a message whenever the row has changed, until the pairing has ended, or the person may not see it any more."""
    before: Any = None
    checked = time.monotonic()
    while True:
        if time.monotonic() - checked > SESSION_SECONDS:
            checked = time.monotonic()
            if await _allowed(scope) is None:
                return
        row = await _row(scope)
        if row is None:
            return
        shown = (row.mac, row.is_canceled, bool(row.answer))
        if before is not None and shown != before:
            await send({"type": "websocket.send", "text": "changed"})
        if row.step in sessions.ENDS:
            return
        before = shown
        await asyncio.sleep(INTERVAL_SECONDS)


def is_same_origin(scope: Any) -> bool:
    """Return True if the page comes from the host that the connection goes to. A connection without Origin is no page."""
    headers = [(name.lower(), value.decode("latin-1")) for name, value in scope.get("headers", ())]
    hosts = [value for name, value in headers if name == b"host"]
    origins = [value for name, value in headers if name == b"origin"]
    return len(hosts) == len(origins) == 1 and urlsplit(origins[0]).netloc.lower() == hosts[0].lower()


@database_sync_to_async
def _row(scope: Any) -> PairingSession | None:
    try:
        return sessions.find(scope["url_route"]["kwargs"]["token"])
    except AmeshError:  # the keys of the seal cannot be used
        return None


@database_sync_to_async
def _allowed(scope: Any) -> PairingSession | None:
    """Return the row if it is that of the person whose session the cookie names, and they may pair devices."""
    headers = dict(scope.get("headers", ()))
    cookies = parse_cookie(headers.get(b"cookie", b"").decode("latin-1"))
    request = HttpRequest()
    store = import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(cookies.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    if not (user.is_active and user.has_perm("amesh.pair_device")):
        return None
    try:
        row = sessions.find(scope["url_route"]["kwargs"]["token"])
    except AmeshError:
        return None
    return row if row is not None and row.owner == str(user.pk) else None
