"""The private parts of Django's request that verification needs. No other module of amesh touches them (design.md, decision 2).

The raw body must be hashed before any parser reads it, and the parsers must still get it. Django has no public way to do both.
"""

from __future__ import annotations

from typing import IO, BinaryIO, cast

from django.http import HttpRequest


def django_request(request: HttpRequest) -> HttpRequest:
    """Return Django's own request. REST framework wraps it; Django's request is returned unchanged.

    Args:
        request: a request of Django or of REST framework.
    """
    return cast("HttpRequest", getattr(request, "_request", request))


def keeps_body(request: HttpRequest) -> bool:
    """Return True if ``request.body`` was read, which keeps the whole body in memory."""
    return hasattr(request, "_body")


def is_read(request: HttpRequest) -> bool:
    """Return True if something has begun to read the stream of the body."""
    started: bool = request._read_started  # type: ignore[attr-defined]
    return started


def stream_of(request: HttpRequest) -> IO[bytes]:
    """Return the stream from which Django reads the body."""
    return request._stream


def replace_stream(request: HttpRequest, stream: IO[bytes]) -> None:
    """Make Django and the parsers read the body from another stream.

    Args:
        stream: the whole body, from its first byte.
    """
    request._stream = cast("BinaryIO", stream)


def skip_csrf_check(request: HttpRequest) -> None:
    """Turn off the CSRF check for this request: no browser can be made to send a signature of a device."""
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
