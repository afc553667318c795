"""The raw body of a request: hashed before any parser, and kept for the parsers. All that is private to Django's request stands here."""

from __future__ import annotations

import hashlib
import tempfile
from typing import IO, BinaryIO, cast

from django.conf import settings as django_settings
from django.http import HttpRequest, UnreadablePostError

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import BodyParserOrderingError, BodyStorageUnavailable, PayloadTooLarge, Unauthorized

_CHUNK = 1 << 16


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A body on its way to disk; closes itself with the request."""

    def __del__(self) -> None:
        self.close()


def _keep(spool: _Spool, chunk: bytes) -> None:
    try:
        spool.write(chunk)
    except OSError as error:
        place = django_settings.FILE_UPLOAD_TEMP_DIR or tempfile.gettempdir()
        raise BodyStorageUnavailable(
            f"The request body cannot be stored in {place} ({error.strerror}).",
            hint="Free disk space there, or set FILE_UPLOAD_TEMP_DIR to another folder.",
        ) from None


def _declared_length(request: HttpRequest) -> int | None:
    try:
        return max(0, int(request.META["CONTENT_LENGTH"]))
    except (KeyError, ValueError):
        return None


def _body_stream(request: HttpRequest, declared: int | None) -> IO[bytes] | None:
    """What the body is read from; None where there is none. A chunked one only where the server decodes it."""
    if hasattr(request, "scope"):
        return request._stream
    chunked = "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower()
    if declared is None and chunked and request.META.get("wsgi.input_terminated"):
        return request.META["wsgi.input"]  # type: ignore[no-any-return]
    return request._stream if declared else None


def body_hash(request: HttpRequest, limit: int) -> str:
    """SHA-256 of the raw body, lower-case hex; the body is spooled, and parsers after this still get it.

    Raises:
        PayloadTooLarge: more than *limit* bytes, declared or real.
        BodyParserOrderingError: something has consumed the body already.
        BodyStorageUnavailable: it can't be kept.
        Unauthorized: there is less of it than was declared.
    """
    declared = _declared_length(request)
    if declared is not None and declared > limit:
        raise PayloadTooLarge()
    if hasattr(request, "_body"):  # somebody asked for request.body, which keeps it
        if len(request.body) > limit:
            raise PayloadTooLarge()
        return hashlib.sha256(request.body).hexdigest()
    if request._read_started:  # type: ignore[attr-defined]
        raise BodyParserOrderingError(hint="Put the amesh middleware first in MIDDLEWARE.")
    stream = _body_stream(request, declared)
    if stream is None:
        return EMPTY_BODY_HASH
    digest, length, spool = hashlib.sha256(), 0, None
    if not (hasattr(request, "scope") and stream.seekable()):  # ASGI: Django has spooled it already
        spool = _Spool(
            max_size=django_settings.FILE_UPLOAD_MAX_MEMORY_SIZE, dir=django_settings.FILE_UPLOAD_TEMP_DIR or None
        )
    try:
        while chunk := stream.read(_CHUNK):
            length += len(chunk)
            if length > limit:
                raise PayloadTooLarge()
            digest.update(chunk)
            if spool is not None:
                _keep(spool, chunk)
    except (OSError, UnreadablePostError):
        raise Unauthorized(reason="body_unreadable") from None
    if declared is not None and length != declared:
        raise Unauthorized(reason="body_length_mismatch")
    if declared is None and length:  # chunked: the parsers go by the length
        request.META["CONTENT_LENGTH"] = str(length)
    kept = spool if spool is not None else stream
    kept.seek(0)
    request._stream = cast("BinaryIO", kept)
    return digest.hexdigest()
