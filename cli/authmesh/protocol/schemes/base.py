"""The interface of a scheme."""

from __future__ import annotations

from typing import Protocol


class Scheme(Protocol):
    """A version of the header. A new version is one more object in :data:`~authmesh.protocol.schemes.registry.SCHEMES`.

    Attributes:
        version: value of ``v`` in the header.
    """

    version: str

    def signed_message(self, *, method: str, target: str, timestamp: str, nonce: str, body_hash: str) -> bytes:
        """Return the bytes that the signature covers.

        Args:
            method: HTTP method.
            target: raw request target.
            timestamp: Unix seconds, decimal.
            nonce: base64url.
            body_hash: SHA-256 of the raw body, lower-case hex.

        Raises:
            InvalidInput: an argument cannot be signed unambiguously.
        """
        ...
