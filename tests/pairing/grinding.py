"""The search of a malicious relay for a key that gives a chosen verification code in version 1.

The search is simple: walk along the curve one addition at a time (batches share one inversion), hash, compare. It takes a million
tries on average, and half of the points are free: -P is P with the other first byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from authmesh.protocol.keys import GROUP_ORDER, generate_private_key, load_private_key

PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
BATCH = 512


def _point(private: int) -> tuple[int, int]:
    numbers = load_private_key(private.to_bytes(32, "big")).public_key().public_numbers()
    return numbers.x, numbers.y


def _inverses(values: list[int]) -> list[int]:
    """Return all inverses modulo the prime with a single inversion (Montgomery's trick)."""
    products, product = [], 1
    for value in values:
        products.append(product)
        product = product * value % PRIME
    inverse = pow(product, -1, PRIME)
    found = [0] * len(values)
    for index in range(len(values) - 1, -1, -1):
        found[index] = inverse * products[index] % PRIME
        inverse = inverse * values[index] % PRIME
    return found


def grind_key(
    wanted: int, hasher: Callable[[], hashlib._Hash], tail: bytes, start: int | None = None
) -> tuple[bytes, int]:
    """Return a private key whose public key hashes to a wanted code, and the number of public keys tried.

    Args:
        wanted: the code, 0 to 999,999.
        hasher: a hash that was fed with the bytes before the key.
        tail: the bytes after the key.
        start: first scalar of the walk. Defaults to a random one.
    """
    base = start or int.from_bytes(generate_private_key(), "big")
    steps = [_point(i) for i in range(1, BATCH + 1)]
    tried = 0
    while True:
        x0, y0 = _point(base)
        for i, (inverse, (x, y)) in enumerate(zip(_inverses([x - x0 for x, _ in steps]), steps, strict=True), 1):
            slope = (y - y0) * inverse % PRIME
            x3 = (slope * slope - x0 - x) % PRIME
            encoded = x3.to_bytes(32, "big")
            for prefix in (b"\x02", b"\x03"):
                tried += 1
                digest = hasher()
                digest.update(prefix + encoded + tail)
                if int.from_bytes(digest.digest()[:3], "big") % 1_000_000 == wanted:
                    odd = (slope * (x0 - x3) - y0) % PRIME % 2
                    private = (base + i) % GROUP_ORDER
                    return (private if odd == prefix[0] - 2 else GROUP_ORDER - private).to_bytes(32, "big"), tried
        base = (base + BATCH + 1) % GROUP_ORDER
