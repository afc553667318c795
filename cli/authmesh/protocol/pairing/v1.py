"""Pairing, version 1: what the reference speaks (protocol.md §6). It does not keep a malicious relay out.

The functions take what the reference takes, where that is harmless: an uncompressed ephemeral key, a signature or an identity
key in base64url. The codes and keys that come out are the same.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..encoding import b64decode, b64decode_any, b64encode, format_time
from ..errors import InvalidInput
from ..keys import decode_public_key, encode_public_key, public_key_bytes, verify_signature
from ..seal import hkdf_sha256
from .codes import Peer, check_point, parse_object, six_digits, utf8
from .errors import InvalidPayload, InvalidSelfSignature

CONFIRMED: Final = "sas_confirmed"
REJECTED: Final = "sas_rejected"

_NONCE_BYTES = 12
_TAG_BYTES = 16
_UNCOMPRESSED_BYTES = 65


def encode_ephemeral(public_key: bytes) -> str:
    """The payload that carries an ephemeral key."""
    return b64encode(public_key)


def decode_ephemeral(payload: str) -> bytes:
    """The ephemeral key in a payload.

    Returns:
        33 bytes, compressed, also where it came uncompressed (SEC 1 §2.3.3).

    Raises:
        InvalidPayload: not base64, or not a point of P-256.
    """
    try:
        point = b64decode(payload)
        if len(point) == _UNCOMPRESSED_BYTES and point[0] == 4:
            point = public_key_bytes(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    except ValueError:
        raise InvalidPayload() from None
    return check_point(point)


def session_key(shared: bytes) -> bytes:
    """The key of the tunnel, 32 bytes (RFC 5869).

    Args:
        shared: 32 bytes of :func:`authmesh.protocol.pairing.codes.shared_secret`.
    """
    return hkdf_sha256(shared, salt=b"amesh-handshake-v1", info=b"session-key")


def encrypt(key: bytes, plaintext: bytes, *, nonce: bytes | None = None) -> str:
    """A payload of the tunnel: base64 of nonce and ChaCha20-Poly1305 ciphertext with tag (RFC 8439).

    Args:
        key: 32 bytes.
        nonce: 12 bytes; None takes random ones.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES) if nonce is None else nonce
    return b64encode(nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, None))


def decrypt(key: bytes, payload: str) -> bytes:
    """What a payload of the tunnel says.

    Raises:
        InvalidPayload: not base64, too short, or made with another key.
    """
    try:
        data = b64decode(payload)
        if len(data) < _NONCE_BYTES + _TAG_BYTES:
            raise InvalidPayload()
        return ChaCha20Poly1305(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
    except (InvalidInput, InvalidTag):
        raise InvalidPayload() from None


def self_signature_message(public_key: str, name: str, timestamp: str) -> bytes:
    """What a self-signature covers: the three texts as they stand in the JSON, without anything between them."""
    return utf8(public_key + name + timestamp)


def verify_self_signature(public_key: str, name: str, timestamp: str, signature: str) -> bool:
    """True if the holder of *public_key* signed the three texts. Never raises for what a peer can send.

    Args:
        public_key: base64 or base64url.
        signature: base64 or base64url; white space in it is ignored, as the reference does.
    """
    try:
        key = decode_public_key(public_key)
        raw = b64decode_any("".join(signature.split()))
    except InvalidInput:
        return False
    return verify_signature(key, self_signature_message(public_key, name, timestamp), raw)


def build_identity(public_key: bytes, name: str, now: dt.datetime, sign: Callable[[bytes], bytes]) -> bytes:
    """The JSON by which a device introduces itself, to be encrypted.

    Args:
        public_key: 33 bytes.
        now: with a time zone.
        sign: signs with the device's key, 64 bytes.
    """
    key, timestamp = encode_public_key(public_key), format_time(now)
    signature = b64encode(sign(self_signature_message(key, name, timestamp)))
    value = {"publicKey": key, "friendlyName": name, "timestamp": timestamp, "selfSig": signature}
    return json.dumps(value).encode("ascii")


def parse_identity(plaintext: bytes) -> Peer:
    """Who the other side is, its signature verified. Version 1 does not look at the age of it.

    Raises:
        InvalidPayload: not the JSON of an identity.
        InvalidSelfSignature: not signed by the key that it names.
    """
    value = parse_object(plaintext, unique=False)
    key, name, timestamp, signature = [
        value.get(member) for member in ("publicKey", "friendlyName", "timestamp", "selfSig")
    ]
    if not (isinstance(key, str) and isinstance(name, str)):
        raise InvalidPayload()
    if not (isinstance(timestamp, str) and isinstance(signature, str)):
        raise InvalidPayload()
    if not verify_self_signature(key, name, timestamp, signature):
        raise InvalidSelfSignature()
    return Peer.claiming(decode_public_key(key), name)


def sas(target_public_key: bytes, controller_public_key: bytes, shared: bytes) -> str:
    """The verification code, six digits.

    Args:
        target_public_key: permanent key, 33 bytes.
        controller_public_key: permanent key, 33 bytes.
        shared: 32 bytes.
    """
    digest = hashlib.sha256(target_public_key + controller_public_key + shared).digest()
    return six_digits(int.from_bytes(digest[:3], "big"))
