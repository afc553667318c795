"""The origin of a URL, and the redirects that may be signed."""

from __future__ import annotations

from typing import NamedTuple

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port of a URL (RFC 6454)."""

    scheme: str
    host: str
    port: int | None


def origin(scheme: str, host: str, port: int | None) -> Origin:
    """Return the origin of a URL.

    Args:
        scheme: ``http`` or ``https``.
        host: host name or address, in lower case.
        port: the port in the URL. Defaults to the port of the scheme.
    """
    return Origin(scheme, host, port or _DEFAULT_PORTS.get(scheme))


def may_sign(named: Origin, asked: Origin) -> bool:
    """Return True if a request to one origin may be signed after a redirect to another one.

    That is the case for the same origin, and for the move from http to https on the same host with default ports. With any other
    origin, this device would authenticate itself to a server that its owner did not name.

    Args:
        named: origin of the request before the redirect.
        asked: origin that the redirect names.
    """
    return named == asked or (named, asked) == (("http", named.host, 80), ("https", named.host, 443))
