"""Version 1 of pairing, the version of the reference (protocol.md §6). It does not protect against a malicious relay.

The functions accept what the reference accepts if that is harmless: an uncompressed ephemeral key, and a signature or an identity
key in base64url. The resulting codes and keys are the same.
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
    """Return the payload that carries an ephemeral key."""
    return b64encode(public_key)


def decode_ephemeral(payload: str) -> bytes:
    """Return the ephemeral key in a payload, 33 bytes. An uncompressed key is compressed (SEC 1 §2.3.3).

    Raises:
        InvalidPayload: *payload* is not base64, or not a point of P-256.
    """
    try:
        point = b64decode(payload)
        if len(point) == _UNCOMPRESSED_BYTES and point[0] == 4:
            point = public_key_bytes(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    except ValueError:
        raise InvalidPayload() from None
    return check_point(point)


def session_key(shared: bytes) -> bytes:
    """Return the key of the tunnel, 32 bytes (RFC 5869).

    Args:
        shared: result of :func:`authmesh.protocol.pairing.codes.shared_secret`.
    """
    return hkdf_sha256(shared, salt=b"amesh-handshake-v1", info=b"session-key")


def encrypt(key: bytes, plaintext: bytes, *, nonce: bytes | None = None) -> str:
    """Return a payload of the tunnel: nonce and ChaCha20-Poly1305 ciphertext with tag, in base64 (RFC 8439).

    Args:
        key: 32 bytes.
        plaintext: the message.
        nonce: 12 bytes. Defaults to random bytes.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES) if nonce is None else nonce
    return b64encode(nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, None))


def decrypt(key: bytes, payload: str) -> bytes:
    """Return the plaintext of a payload of the tunnel.

    Raises:
        InvalidPayload: *payload* is not base64, is too short, or was made with another key.
    """
    try:
        data = b64decode(payload)
        if len(data) < _NONCE_BYTES + _TAG_BYTES:
            raise InvalidPayload()
        return ChaCha20Poly1305(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
    except (InvalidInput, InvalidTag):
        raise InvalidPayload() from None


def self_signature_message(public_key: str, name: str, timestamp: str) -> bytes:
    """Return the bytes that a self-signature covers: the three texts as they are in the JSON, without separators."""
    return utf8(public_key + name + timestamp)


def verify_self_signature(public_key: str, name: str, timestamp: str, signature: str) -> bool:
    """Return True if the holder of *public_key* signed the three texts. Never raises, whatever a peer sends.

    Args:
        public_key: base64 or base64url.
        name: friendly name.
        timestamp: time of the signature.
        signature: base64 or base64url. White space in it is ignored, as in the reference.
    """
    try:
        key = decode_public_key(public_key)
        raw = b64decode_any("".join(signature.split()))
    except InvalidInput:
        return False
    return verify_signature(key, self_signature_message(public_key, name, timestamp), raw)


def build_identity(public_key: bytes, name: str, now: dt.datetime, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the JSON by which a device introduces itself, before encryption.

    Args:
        public_key: 33 bytes.
        name: friendly name.
        now: the current time, with a time zone.
        sign: returns a signature made with the key of the device, 64 bytes.
    """
    key, timestamp = encode_public_key(public_key), format_time(now)
    signature = b64encode(sign(self_signature_message(key, name, timestamp)))
    value = {"publicKey": key, "friendlyName": name, "timestamp": timestamp, "selfSig": signature}
    return json.dumps(value).encode("ascii")


def parse_identity(plaintext: bytes) -> Peer:
    """Return the other device, after verifying its signature. Version 1 does not check the age of the signature.

    Raises:
        InvalidPayload: *plaintext* is not the JSON of an identity.
        InvalidSelfSignature: it is not signed with the key that it contains.
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
    """Return the verification code, six digits.

    Args:
        target_public_key: permanent key of the target, 33 bytes.
        controller_public_key: permanent key of the controller, 33 bytes.
        shared: result of :func:`authmesh.protocol.pairing.codes.shared_secret`.
    """
    digest = hashlib.sha256(target_public_key + controller_public_key + shared).digest()
    return six_digits(int.from_bytes(digest[:3], "big"))
