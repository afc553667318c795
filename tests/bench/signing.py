"""Devices with keys, and the requests that they sign, made before the clock is started."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from authmesh.protocol import b64url_encode, build_authorization, load_private_key, public_key_bytes, sign
from authmesh.protocol.schemes.registry import SCHEMES

METHOD = "POST"
TARGET = "/amesh/?page=2&sort=name"
BODY = b'{"sensor": "t1", "value": 21.5, "unit": "C", "at": "2026-03-28T10:05:00.000Z"}'
BODY_HASH = hashlib.sha256(BODY).hexdigest()

_PRIVATE_KEY_BYTES = 32


class KeyPair(NamedTuple):
    """A device that signs."""

    private_key: ec.EllipticCurvePrivateKey
    public_key: bytes


class Signed(NamedTuple):
    """A signed request."""

    header: str
    message: bytes
    signature: bytes
    public_key: bytes
    timestamp: str
    nonce: str


def signature_to_der(signature: bytes) -> bytes:
    """`r || s` as OpenSSL takes it."""
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


def make_signers(path: Path, count: int) -> None:
    """Write that many private keys, for the processes that sign and those that fill lists."""
    keys = (ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value for _ in range(count))
    path.write_bytes(b"".join(key.to_bytes(_PRIVATE_KEY_BYTES, "big") for key in keys))


def read_signers(path: Path, count: int) -> list[KeyPair]:
    """The first *count* of them, or as many as there are."""
    raw = path.read_bytes()[: count * _PRIVATE_KEY_BYTES]
    keys = [load_private_key(raw[at : at + _PRIVATE_KEY_BYTES]) for at in range(0, len(raw), _PRIVATE_KEY_BYTES)]
    return [KeyPair(key, public_key_bytes(key)) for key in keys]


def signed(signers: Sequence[KeyPair], count: int) -> list[Signed]:
    """Fresh requests, the signers taking turns."""
    timestamp = str(int(time.time()))
    made = []
    for number in range(count):
        signer = signers[number % len(signers)]
        nonce = b64url_encode(os.urandom(16))
        message = SCHEMES["1"].signed_message(
            method=METHOD, target=TARGET, timestamp=timestamp, nonce=nonce, body_hash=BODY_HASH
        )
        signature = sign(signer.private_key, message)
        header = build_authorization(
            public_key=signer.public_key, timestamp=int(timestamp), nonce=nonce, signature=signature
        )
        made.append(Signed(header, message, signature, signer.public_key, timestamp, nonce))
    return made
