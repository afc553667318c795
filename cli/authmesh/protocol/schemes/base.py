"""What every version of the header has to offer."""

from __future__ import annotations

from typing import Protocol


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
