"""The raw body of a request: hashed before any parser reads it, and kept for the parsers."""

from __future__ import annotations

import hashlib
import tempfile
from os import SEEK_END
from typing import IO

from django.conf import settings as django_settings
from django.http import HttpRequest

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import (
    BodyParserOrderingError,
    BodyStorageUnavailable,
    PayloadTooLarge,
    RequestError,
    Unauthorized,
)

from . import private

_CHUNK = 1 << 16
#: Maximum size of a body that is read although the timestamp of the request is out of range.
_LATE_BYTES = 1 << 16


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A body in memory, or on disk if it is large. Closes itself when the request is gone."""

    def __del__(self) -> None:
        self.close()


def _keep(spool: _Spool, chunk: bytes) -> None:
    try:
        spool.write(chunk)
    except OSError as error:
        place = django_settings.FILE_UPLOAD_TEMP_DIR or tempfile.gettempdir()
        raise BodyStorageUnavailable(
            f"The request body cannot be stored in {place} ({error.strerror}). The request was rejected.",
            hint="Free disk space there, or set FILE_UPLOAD_TEMP_DIR to another directory.",
        ) from None


def _declared_length(request: HttpRequest) -> int | None:
    try:
        return max(0, int(request.META["CONTENT_LENGTH"]))
    except (KeyError, ValueError):
        return None


def _body_stream(request: HttpRequest, declared: int | None) -> IO[bytes] | None:
    """Return the stream of the body, or None if there is no body.

    Under WSGI, a chunked body is read only if the server decodes it and marks its end.
    """
    if hasattr(request, "scope"):
        return private.stream_of(request)
    chunked = "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower()
    if declared is None and chunked and request.META.get("wsgi.input_terminated"):
        return request.META["wsgi.input"]  # type: ignore[no-any-return]
    return private.stream_of(request) if declared else None


def check_before_lookup(request: HttpRequest, limit: int) -> None:
    """Reject what can be rejected before the body is read: for every caller, so that the response does not tell who is known.

    Args:
        request: Django's request.
        limit: ``AMESH["MAX_BODY_BYTES"]``.

    Raises:
        PayloadTooLarge: the body has more than *limit* bytes.
        BodyParserOrderingError: something has read the body already.
    """
    if _known_length(request) > limit:
        raise PayloadTooLarge(hint="Send a smaller body, or raise AMESH['MAX_BODY_BYTES'] on the server.")
    if private.is_read(request) and not private.keeps_body(request):
        raise BodyParserOrderingError(
            hint="Verify the request before anything reads its body: in MIDDLEWARE, put "
            "amesh_django.middleware.AmeshMiddleware before every middleware that does."
        )


def _known_length(request: HttpRequest) -> int:
    """Return the length of the body as far as it is known before it is read."""
    declared = _declared_length(request) or 0
    if private.keeps_body(request):
        return max(declared, len(request.body))
    if hasattr(request, "scope") and not private.is_read(request):
        return max(declared, _spooled_length(private.stream_of(request)))
    return declared


def _spooled_length(stream: IO[bytes]) -> int:
    """Return the length of a body that Django has received already, which it has under ASGI."""
    if not stream.seekable():  # Django's AsyncClient, in tests
        return 0
    length = stream.seek(0, SEEK_END)
    stream.seek(0)
    return length


def late_body_hash(request: HttpRequest, limit: int) -> str:
    """Return the hash of a small body, so that a device learns that its clock is wrong. Read no more than that.

    Args:
        request: Django's request, whose timestamp is out of range.
        limit: as for :func:`body_hash`.

    Raises:
        Unauthorized: the body has more than 64 KiB, or as for :func:`body_hash`.
        BodyStorageUnavailable: as for :func:`body_hash`.
    """
    late = Unauthorized(reason="timestamp_out_of_range", detail="the body was not read")
    if _known_length(request) > _LATE_BYTES:
        raise late
    return _hash(request, min(limit, _LATE_BYTES), late)


def body_hash(request: HttpRequest, limit: int) -> str:
    """Return the SHA-256 of the raw body in lower-case hex. The parsers can still read the body afterwards.

    A body that turns out to be too large while it is read gives the same response as an unknown device: only the body of a
    known device is read, so another response would tell that the device is known.

    Args:
        request: Django's request, after :func:`check_before_lookup`.
        limit: ``AMESH["MAX_BODY_BYTES"]``.

    Raises:
        BodyStorageUnavailable: the body can't be kept for the parsers.
        Unauthorized: the body ended too early, can't be read, or has more than *limit* bytes.
    """
    return _hash(request, limit, Unauthorized(reason="payload_too_large", detail="a body without a Content-Length"))


def _hash(request: HttpRequest, limit: int, too_large: Unauthorized) -> str:
    if private.keeps_body(request):
        return hashlib.sha256(request.body).hexdigest()
    declared = _declared_length(request)
    stream = _body_stream(request, declared)
    if stream is None:
        return EMPTY_BODY_HASH
    digest, length, spool = hashlib.sha256(), 0, None
    if not (hasattr(request, "scope") and stream.seekable()):  # under ASGI, Django has spooled the body already
        spool = _Spool(
            max_size=django_settings.FILE_UPLOAD_MAX_MEMORY_SIZE, dir=django_settings.FILE_UPLOAD_TEMP_DIR or None
        )
    try:
        while chunk := stream.read(min(_CHUNK, limit + 1 - length)):
            length += len(chunk)
            if length > limit:
                raise too_large
            digest.update(chunk)
            if spool is not None:
                _keep(spool, chunk)
    except RequestError:
        raise
    except Exception as error:  # each server raises errors of its own
        raise Unauthorized(reason="body_unreadable", detail=type(error).__name__) from None
    if declared is not None and length != declared:
        raise Unauthorized(reason="body_length_mismatch")
    if declared is None and length:  # a chunked body: the parsers need a length
        request.META["CONTENT_LENGTH"] = str(length)
    kept = spool if spool is not None else stream
    kept.seek(0)
    private.replace_stream(request, kept)
    return digest.hexdigest()
