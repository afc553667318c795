"""A body that must be read twice: hashed before the head of the request goes out, then sent."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator

import httpx

#: Up to this many bytes a streamed body is kept in memory; beyond, in an unnamed temporary file.
MEMORY_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


class SpooledBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that came in pieces, kept so that exactly what was hashed is sent, as often as redirects ask for it.

    Attributes:
        length: in bytes.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self.length = 0
        # httpx never closes the body of a request, and may send it again after we are done.
        weakref.finalize(self, self._file.close)

    def write(self, chunk: bytes) -> None:
        """Add the next piece."""
        self._hash.update(chunk)
        self.length += len(chunk)
        self._file.write(chunk)

    @property
    def sha256(self) -> str:
        """Lower-case hex SHA-256 of all that was written."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        """The body from its beginning."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body from its beginning; the reads are short and block, as those of httpx itself do."""
        for chunk in self:
            yield chunk
