"""Version 1 of the header (protocol.md §2)."""

from __future__ import annotations

from ..canonical import canonical_string_of_hash


class SchemeV1:
    """Sign the canonical string. It covers neither the audience nor the content type."""

    version = "1"

    def signed_message(self, *, method: str, target: str, timestamp: str, nonce: str, body_hash: str) -> bytes:
        return canonical_string_of_hash(method, target, timestamp, nonce, body_hash).encode("utf-8", "replace")
