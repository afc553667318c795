"""AmeshAuth: signs the requests of an httpx client, sync or async, and the redirects that it follows.

httpx asks an Auth once for a whole chain of redirects and copies its header to the next request, where it would be wrong. So a
redirected request is signed where its head is about to go out, in httpcore's ``trace`` extension. Transports that know no such
extension (WSGI, ASGI, mock) are served afterwards: what they refused with a copied header is signed and sent again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import httpx

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import InvalidInput

from .signing import PREFIX, Signer, default_device, default_device_async, sign_request
from .spool import SpooledBody

Origin = tuple[str, str, int | None]
_PORTS = {"http": 80, "https": 443}


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or _PORTS.get(url.scheme)


def may_sign(named: Origin, asked: Origin) -> bool:
    """True if a request that was meant for one origin may be signed for another one that a redirect names.

    The same origin, or the same host over https at the default ports. Anywhere else this device would authenticate itself to
    somebody whom its owner did not name.
    """
    host = named[1]
    return named == asked or (named, asked) == (("http", host, 80), ("https", host, 443))


class AmeshAuth(httpx.Auth):
    """Signs what an httpx client sends: ``httpx.Client(auth=AmeshAuth())``, the same for ``httpx.AsyncClient``.

    Each request has a signature of its own over exactly the method, target and body that go out. A body that comes in pieces
    (a file, a generator, a multipart form) is spooled first: in memory up to 1 MiB, then in a temporary file; its length goes
    out as Content-Length.

    Redirects that the client follows are signed anew with a fresh nonce while they stay at the origin of the request (or move to
    https on the same host). A redirect to another origin is sent unsigned, and so is all that follows it.

    Args:
        device: who signs; None is :func:`~authmesh.client.default_device`, looked up at the first request.
        now: returns Unix seconds.
    """

    requires_request_body = True

    def __init__(self, device: Signer | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._device = device
        self._now = now

    def _signer(self) -> Signer:
        if self._device is None:
            self._device = default_device()
        return self._device

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign *request* and what follows it.

        Raises:
            InvalidInput: the body can be read by an async client only.
            IdentityMissing, DirectoryError, KeyStoreError: the device can't be opened or its key can't be used.
        """
        if not isinstance(request.stream, httpx.ByteStream | SpooledBody):
            if not isinstance(request.stream, httpx.SyncByteStream):
                raise InvalidInput("This body is asynchronous. Send it by httpx.AsyncClient, or give bytes or a file.")
            body = SpooledBody()
            for chunk in request.stream:
                body.write(chunk)
            _replace_body(request, body)
        chain = _Chain(self._signer(), self._now, request)
        request.extensions = {**request.extensions, "trace": _Trace(chain, request)}
        yield from chain.flow(request)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """As :meth:`sync_auth_flow`, for an async client."""
        if not isinstance(request.stream, httpx.ByteStream | SpooledBody):
            if not isinstance(request.stream, httpx.AsyncByteStream):
                raise InvalidInput("This body is not asynchronous. Send it by httpx.Client, or give bytes.")
            body = SpooledBody()
            async for chunk in request.stream:
                body.write(chunk)
            _replace_body(request, body)
        if self._device is None:
            self._device = await default_device_async()
        chain = _Chain(self._device, self._now, request)
        request.extensions = {**request.extensions, "trace": _AsyncTrace(chain, request)}
        flow = chain.flow(request)
        following = next(flow)
        while True:
            response = yield following
            try:
                following = flow.send(response)
            except StopIteration:
                return

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """As :meth:`sync_auth_flow`."""
        yield from self.sync_auth_flow(request)


def _replace_body(request: httpx.Request, body: SpooledBody) -> None:
    request.stream = body
    if "Transfer-Encoding" in request.headers:  # the length is known now, and not every server hands chunks on
        del request.headers["Transfer-Encoding"]
        request.headers["Content-Length"] = str(body.length)


class _Chain:
    """One request of the caller, and the redirects that follow it."""

    def __init__(self, signer: Signer, now: Callable[[], float], request: httpx.Request) -> None:
        self._signer = signer
        self._now = now
        self._origin = _origin(request.url)
        self._stream = request.stream
        if isinstance(request.stream, SpooledBody):
            self._body_hash = request.stream.sha256
        else:
            content = request.read()
            self._body_hash = hashlib.sha256(content).hexdigest() if content else EMPTY_BODY_HASH
        self._unsent = ""
        self._traced = False

    def flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        while True:
            target = request.extensions.get("target") or request.url.raw_path
            self._unsent = self._sign(request.method, target, request.stream)
            request.headers["Authorization"] = self._unsent
            response = yield request
            refused = response.request
            if self._traced or refused is request or response.status_code != 401:
                return
            if not refused.headers.get("Authorization", "").startswith(PREFIX) or not self._follows(refused.url):
                return
            request = refused

    def before_head(self, request: Any) -> None:
        """Sign *request*, an ``httpcore.Request``, if a redirect made it; its head goes out right after this."""
        index = next((i for i, (name, _) in enumerate(request.headers) if name.lower() == b"authorization"), None)
        if index is None:  # CONNECT to a proxy, or httpx took the header off: another origin
            return
        name, value = request.headers[index]
        value = value.decode("latin-1")
        self._traced = True
        if not value.startswith(PREFIX):
            return
        if value == self._unsent:
            self._unsent = ""
            return
        url, target = _wire_url(request.url)
        if self._follows(url):
            header = self._sign(request.method.decode("ascii"), target, request.stream)
            request.headers[index] = (name, header.encode("ascii"))
        else:
            del request.headers[index]

    def _follows(self, url: httpx.URL) -> bool:
        asked = _origin(url)
        if not may_sign(self._origin, asked):
            return False
        self._origin = asked
        return True

    def _sign(self, method: str, target: bytes, stream: Any) -> str:
        same_body = stream is self._stream  # else a redirect turned the request into a GET, which has none
        return sign_request(
            self._signer,
            method=method,
            target=target.decode("latin-1"),
            body_hash=self._body_hash if same_body else EMPTY_BODY_HASH,
            now=self._now(),
        )


def _wire_url(url: Any) -> tuple[httpx.URL, bytes]:
    """The URL of an ``httpcore.Request``, and its target as the server will see it behind a proxy."""
    if url.target.startswith(b"/"):
        port = f":{url.port}" if url.port is not None else ""
        return httpx.URL(f"{url.scheme.decode()}://{url.host.decode()}{port}"), url.target
    absolute = httpx.URL(url.target.decode("latin-1"))  # what a forward proxy is asked for
    return absolute, absolute.raw_path


class _Trace:
    """The ``trace`` extension of a sync request; passes every event on to the caller's own."""

    _inner: Any

    def __init__(self, chain: _Chain, request: httpx.Request) -> None:
        inner = request.extensions.get("trace")
        self._inner = (
            inner._inner if isinstance(inner, _Trace) else inner
        )  # ours, where a request is sent a second time
        self._chain = chain

    def _before(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(".send_request_headers.started"):
            self._chain.before_head(info["request"])

    def __call__(self, event: str, info: dict[str, Any]) -> Any:
        self._before(event, info)
        if self._inner is not None:
            self._inner(event, info)


class _AsyncTrace(_Trace):
    """The same for an async request, where httpcore asks for a coroutine."""

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self._before(event, info)
        if self._inner is not None:
            await self._inner(event, info)
