"""The body of a request of aiohttp: hashed, and copied if it can be read only once. Imports aiohttp."""

from __future__ import annotations

import hashlib
from typing import Any

from aiohttp import BytesPayload, ClientRequest, Payload
from aiohttp.abc import AbstractStreamWriter

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import InvalidInput

from .spool import SpooledBody


async def hash_body(request: ClientRequest) -> str:
    """Return the hash of the body. A body that can be read only once is replaced by a copy.

    Raises:
        InvalidInput: aiohttp would compress the body after it was signed.
    """
    body = request.body
    if not isinstance(body, Payload):
        return EMPTY_BODY_HASH
    if request.compress:
        raise InvalidInput(
            "aiohttp would compress the body after it was signed.",
            hint="Compress the body yourself, and name the Content-Encoding in the headers.",
        )
    if isinstance(body, BytesPayload):
        return hashlib.sha256(await body.as_bytes()).hexdigest()
    if not isinstance(body, _SpooledPayload):
        spooled = SpooledBody()
        await body.write(_Spooler(spooled))
        body = _SpooledPayload(spooled, headers=dict(body.headers))
        # The length is known now, and not every server forwards chunks.
        request.headers.pop("Transfer-Encoding", None)
        request.chunked = None
        await request.update_body(body)
    return body.spooled.sha256


class _SpooledPayload(Payload):
    """A spooled body, which aiohttp may send several times."""

    _autoclose = True  # the spooled file closes itself

    def __init__(self, spooled: SpooledBody, headers: dict[str, str]) -> None:
        super().__init__(spooled, headers=headers)
        self.spooled = spooled
        self._size = spooled.length

    async def write(self, writer: AbstractStreamWriter) -> None:
        for chunk in self.spooled:
            await writer.write(chunk)

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"".join(self.spooled)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self.spooled).decode(encoding, errors)


class _Spooler(AbstractStreamWriter):
    """Takes what aiohttp would send as the body."""

    def __init__(self, spooled: SpooledBody) -> None:
        self._spooled = spooled

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self._spooled.write(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        self._spooled.write(chunk)

    async def drain(self) -> None:
        pass

    def enable_compression(self, *args: Any, **kwargs: Any) -> None:
        pass

    def enable_chunking(self) -> None:
        pass

    async def write_headers(self, *args: Any, **kwargs: Any) -> None:
        pass
