"""AmeshAuth signs the requests of an httpx client, sync or async, and the redirects that the client follows.

httpx calls an Auth once for a whole chain of redirects and copies the Authorization header to each next request, for which the
signature is wrong. Therefore a redirected request is signed right before its headers are sent, in the ``trace`` extension of
httpcore. Transports without that extension (WSGI, ASGI, mock) send the copied header; a request that is rejected with it is signed
and sent again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import httpx

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import InvalidInput

from .notices import heed
from .origins import Origin, may_sign, origin
from .signing import (
    PREFIX,
    Signer,
    default_device,
    default_device_async,
    enroll_default_device,
    enroll_default_device_async,
    sign_request,
)
from .spool import SpooledBody


class AmeshAuth(httpx.Auth):
    """Signs the requests of an httpx client: ``httpx.Client(auth=AmeshAuth())`` or ``httpx.AsyncClient(auth=AmeshAuth())``.

    Each request gets its own signature over exactly the method, target and body that are sent. A streamed body (a file, a
    generator, a multipart form) is spooled first: in memory up to 1 MiB, then in a temporary file. Its length is sent as
    Content-Length.

    Redirects that the client follows are signed with a fresh nonce as long as they stay at the origin of the request, or move to
    https on the same host. A redirect to another origin is sent unsigned, and so are all redirects after it.

    Args:
        device: the device that signs. Defaults to :func:`~authmesh.client.default_device`, opened at the first request.
        now: returns Unix seconds.
    """

    requires_request_body = True

    def __init__(self, device: Signer | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._device = device
        self._now = now

    def _signer(self, asked: Origin) -> Signer:
        if self._device is not None:
            return self._device
        enroll_default_device(asked)
        return default_device(asked)  # each time: its key may have been replaced

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign *request* and its redirects.

        Raises:
            InvalidInput: only an async client can read the body.
            IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
            EnrollmentError, RequestError: the token in ``AMESH_ENROLL_TOKEN`` is for this server, and did not enroll the device.
        """
        if not isinstance(request.stream, httpx.ByteStream | SpooledBody):
            if not isinstance(request.stream, httpx.SyncByteStream):
                raise InvalidInput(
                    "The body is asynchronous, and the client is not.",
                    hint="Use httpx.AsyncClient, or pass bytes or a file.",
                )
            body = SpooledBody()
            for chunk in request.stream:
                body.write(chunk)
            _replace_body(request, body)
        chain = _Chain(self._signer(_origin_of(request.url)), self._now, request)
        request.extensions = {**request.extensions, "trace": _Trace(chain, request)}
        yield from chain.flow(request)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Sign *request* and its redirects, for an async client.

        Raises:
            InvalidInput: only a sync client can read the body.
            IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
            EnrollmentError, RequestError: the token in ``AMESH_ENROLL_TOKEN`` is for this server, and did not enroll the device.
        """
        if not isinstance(request.stream, httpx.ByteStream | SpooledBody):
            if not isinstance(request.stream, httpx.AsyncByteStream):
                raise InvalidInput(
                    "The body is not asynchronous, and the client is.", hint="Use httpx.Client, or pass bytes."
                )
            body = SpooledBody()
            async for chunk in request.stream:
                body.write(chunk)
            _replace_body(request, body)
        device = self._device
        if device is None:
            asked = _origin_of(request.url)
            await enroll_default_device_async(asked)
            device = await default_device_async(asked)
        chain = _Chain(device, self._now, request)
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
        yield from self.sync_auth_flow(request)


def _origin_of(url: httpx.URL) -> Origin:
    return origin(url.scheme, url.host, url.port)


def _replace_body(request: httpx.Request, body: SpooledBody) -> None:
    request.stream = body
    if "Transfer-Encoding" in request.headers:  # the length is known now, and not every server forwards chunks
        del request.headers["Transfer-Encoding"]
        request.headers["Content-Length"] = str(body.length)


class _Chain:
    """One request of the caller and the redirects after it."""

    def __init__(self, signer: Signer, now: Callable[[], float], request: httpx.Request) -> None:
        self._signer = signer
        self._now = now
        self._origin = _origin_of(request.url)
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
            rejected = response.request
            if rejected.headers.get("Authorization", "").startswith(PREFIX):
                heed(response.headers, _origin_of(rejected.url), self._signer.identity.device_id)
            if self._traced or rejected is request or response.status_code != 401:
                return
            if not rejected.headers.get("Authorization", "").startswith(PREFIX) or not self._follows(rejected.url):
                return
            request = rejected

    def before_head(self, request: Any) -> None:
        """Sign *request*, an ``httpcore.Request``, if it is a redirect. Its headers are sent right after this call."""
        index = next((i for i, (name, _) in enumerate(request.headers) if name.lower() == b"authorization"), None)
        if index is None:  # CONNECT to a proxy; or another origin, for which httpx removed the header
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
        asked = _origin_of(url)
        if not may_sign(self._origin, asked):
            return False
        self._origin = asked
        return True

    def _sign(self, method: str, target: bytes, stream: Any) -> str:
        same_body = stream is self._stream  # if not, a redirect changed the request to a GET without a body
        return sign_request(
            self._signer,
            method=method,
            target=target.decode("latin-1"),
            body_hash=self._body_hash if same_body else EMPTY_BODY_HASH,
            now=self._now(),
        )


def _wire_url(url: Any) -> tuple[httpx.URL, bytes]:
    """Return the URL of an ``httpcore.Request``, and its target as the server receives it, possibly through a proxy."""
    if url.target.startswith(b"/"):
        port = f":{url.port}" if url.port is not None else ""
        return httpx.URL(f"{url.scheme.decode()}://{url.host.decode()}{port}"), url.target
    absolute = httpx.URL(url.target.decode("latin-1"))  # a forward proxy gets the whole URL as target
    return absolute, absolute.raw_path


class _Trace:
    """The ``trace`` extension of a sync request. It passes every event on to the caller's own extension."""

    _inner: Any

    def __init__(self, chain: _Chain, request: httpx.Request) -> None:
        inner = request.extensions.get("trace")
        # A request that is sent a second time already has this extension.
        self._inner = inner._inner if isinstance(inner, _Trace) else inner
        self._chain = chain

    def _before(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(".send_request_headers.started"):
            self._chain.before_head(info["request"])

    def __call__(self, event: str, info: dict[str, Any]) -> Any:
        self._before(event, info)
        if self._inner is not None:
            self._inner(event, info)


class _AsyncTrace(_Trace):
    """The ``trace`` extension of an async request, for which httpcore needs a coroutine."""

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self._before(event, info)
        if self._inner is not None:
            await self._inner(event, info)
