"""Versions are schemes: what ``v`` of the header selects (design.md, decision 11)."""

from __future__ import annotations

from typing import Protocol

from .canonical import canonical_string_of_hash


class Scheme(Protocol):
    """What a version of the header signs. A new version is one more object of this kind in :data:`SCHEMES`."""

    version: str

    def signed_message(self, *, method: str, target: str, timestamp: str, nonce: str, body_hash: str) -> bytes:
        """The bytes that the signature covers.

        Args:
            method: HTTP method.
            target: raw request target.
            timestamp: Unix seconds, decimal.
            nonce: base64url.
            body_hash: lower-case hex SHA-256 of the raw body.

        Raises:
            InvalidInput: a member that can't be signed unambiguously.
        """
        ...


class SchemeV1:
    """Version 1: the canonical string of protocol.md §2. It binds neither the audience nor the content type."""

    version = "1"

    def signed_message(self, *, method: str, target: str, timestamp: str, nonce: str, body_hash: str) -> bytes:
        """See :class:`Scheme`."""
        return canonical_string_of_hash(method, target, timestamp, nonce, body_hash).encode("utf-8", "replace")


#: Version → scheme; the only place that knows which versions there are.
SCHEMES: dict[str, Scheme] = {"1": SchemeV1()}
