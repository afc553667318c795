"""A keyed, masked multiset hash: one digest over many rows that can be updated in constant time.

MSet-Add-Hash of Clarke, Devadas, van Dijk, Gassend and Suh, "Incremental Multiset Hash Functions and Their Application to
Memory Integrity Checking", ASIACRYPT 2003: ``H_K(0 || r) + sum of H_K(1 || row) mod 2^256``, with a fresh r for each change.
"""

from __future__ import annotations

import hmac

MODULUS = 1 << 256
#: Length of r, the random value of a mask, in bytes.
MASK_BYTES = 32


def row_hash(key: bytes, row: bytes) -> int:
    """Return H_K(1 || row), a number below 2^256."""
    return int.from_bytes(hmac.digest(key, b"\x01" + row, "sha256"), "big")


def mask(key: bytes, r: bytes) -> int:
    """Return H_K(0 || r), a number below 2^256."""
    return int.from_bytes(hmac.digest(key, b"\x00" + r, "sha256"), "big")


def encode_row(*fields: str) -> bytes:
    """Return an unambiguous encoding of a row: each field as ``<length in bytes>:<UTF-8>``, one after the other."""
    row = "".join([f"{len(text)}:{text}" for text in fields])
    if row.isascii():  # nearly every row; several times faster, because every character is one byte
        return row.encode("ascii")
    return b"".join([b"%d:%b" % (len(raw), raw) for text in fields for raw in (text.encode("utf-8", "surrogatepass"),)])
