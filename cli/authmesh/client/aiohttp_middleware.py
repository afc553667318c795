"""AmeshAiohttpMiddleware signs the requests of an aiohttp session, and the redirects that it follows.

aiohttp calls a middleware right before a request is sent: once for each redirect, and again if it retries after a connection broke. So
each of them gets a signature of its own. The middleware must know which requests belong to one chain of redirects, to leave what
follows a redirect to another origin unsigned. aiohttp has no public name for that. The requests of a chain share the object
``_timer``; pyproject.toml allows no version of aiohttp that was not tried.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from .notices import heed
from .origins import Origin, may_sign, origin
from .signing import Signer, default_device_async, enroll_default_device_async, sign_request

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

_REDIRECTS = (301, 302, 303, 307, 308)


class AmeshAiohttpMiddleware:
    """Signs the requests of aiohttp: ``aiohttp.ClientSession(middlewares=[AmeshAiohttpMiddleware()])``.

    Each request gets its own signature over exactly the method, target and body that are sent. A streamed body (a file, an async
    generator, a multipart form) is spooled first: in memory up to 1 MiB, then in a temporary file. Its length is sent as
    Content-Length.

    Redirects that aiohttp follows are signed with a fresh nonce as long as they stay at the origin of the request, or move to https on
    the same host. A redirect to another origin is sent unsigned, and so are all redirects after it.

    Put it last in ``middlewares``: a middleware after it that sends a request twice or changes it makes the signature invalid.

    Args:
        device: the device that signs. Defaults to :func:`~authmesh.client.default_device`, opened at the first request.
        now: returns Unix seconds.

    Raises:
        ImportError: aiohttp is not installed.
    """

    def __init__(self, device: Signer | None = None, *, now: Callable[[], float] = time.time) -> None:
        try:
            from .aiohttp_body import hash_body
        except ModuleNotFoundError:
            raise ImportError(
                "AmeshAiohttpMiddleware needs the package aiohttp. Install it: pip install 'amesh-django[aiohttp]'"
            ) from None
        self._hash_body = hash_body
        self._device = device
        self._now = now
        #: For each chain that was redirected: the object that its requests share, which is kept so that its id stays its own, and the
        #: origin that may be signed for next, or None. An entry lives as long as the response that redirected.
        self._chains: dict[int, tuple[object, Origin | None]] = {}

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Sign *request* and send it. aiohttp calls this.

        Raises:
            InvalidInput: aiohttp would compress the body after it was signed.
            IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
            EnrollmentError, RequestError: the token in ``AMESH_ENROLL_TOKEN`` is for this server, and did not enroll the device.
        """
        chain = request._timer
        asked: Origin | None = origin(request.url.scheme, request.url.raw_host or "", request.url.port)
        if id(chain) in self._chains:
            named = self._chains[id(chain)][1]
            if named is None or asked is None or not may_sign(named, asked):
                asked = None
        device = await self._signer(asked) if asked is not None else None
        if device is not None:
            request.headers["Authorization"] = await self._sign(request, device)
        response = await handler(request)
        if device is not None and asked is not None:
            heed(response.headers, asked, device.identity.device_id)
        if response.status in _REDIRECTS:
            self._chains[id(chain)] = (chain, asked)
            weakref.finalize(response, self._chains.pop, id(chain), None).atexit = False
        return response

    async def _signer(self, asked: Origin) -> Signer:
        if self._device is not None:
            return self._device
        await enroll_default_device_async(asked)
        return await default_device_async(asked)  # each time: its key may have been replaced

    async def _sign(self, request: ClientRequest, device: Signer) -> str:
        body_hash = await self._hash_body(request)
        return sign_request(
            device,
            method=request.method,
            target=request.url.raw_path_qs,
            body_hash=body_hash,
            now=self._now(),
        )
