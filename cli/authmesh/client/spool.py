"""A streamed body that is read twice: to hash it before the headers are sent, then to send it."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator

import httpx

#: Larger bodies are kept in an unnamed temporary file instead of memory, in bytes.
MEMORY_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


class SpooledBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A copy of a streamed body, so that exactly the bytes that were hashed are sent, once for each redirect.

    Attributes:
        length: in bytes.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self.length = 0
        # httpx never closes the body of a request, and may send it again after the auth flow has ended.
        weakref.finalize(self, self._file.close)

    def write(self, chunk: bytes) -> None:
        """Append the next chunk."""
        self._hash.update(chunk)
        self.length += len(chunk)
        self._file.write(chunk)

    @property
    def sha256(self) -> str:
        """Lower-case hex SHA-256 of everything that was written."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body from its start."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body from its start. The reads are short and blocking, like those of httpx for files."""
        for chunk in self:
            yield chunk
