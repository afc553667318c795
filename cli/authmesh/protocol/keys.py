"""P-256 keys, device IDs and signatures (protocol.md §1; FIPS 186-5 §6; SEC 1 §2.3; RFC 6979)."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .encoding import b64decode_any, b64encode, b64url_encode
from .errors import InvalidInput

#: Order of the P-256 group (FIPS 186-5, SP 800-186 §3.2.1.3).
GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
HALF_ORDER = GROUP_ORDER // 2
PUBLIC_KEY_BYTES = 33
PRIVATE_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_CURVE = ec.SECP256R1()
_VERIFY = ec.ECDSA(hashes.SHA256())


def _signing_algorithm() -> ec.ECDSA:
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:  # cryptography uses an OpenSSL older than 3.2
        return _VERIFY


_SIGN = _signing_algorithm()


def device_id(public_key: bytes) -> str:
    """Return the device ID of a key: ``am_`` and the first 16 base64url characters of the SHA-256 of the compressed key.

    Args:
        public_key: 33 bytes, compressed SEC 1 point.

    Raises:
        InvalidInput: *public_key* is not 33 bytes that start with 2 or 3.
    """
    if len(public_key) != PUBLIC_KEY_BYTES or public_key[0] not in (2, 3):
        raise InvalidInput("A public key has 33 bytes: a compressed P-256 point.")
    return "am_" + b64url_encode(hashlib.sha256(public_key).digest())[:16]


def encode_public_key(public_key: bytes) -> str:
    """Return a public key in the form of files and headers: standard base64, 44 characters."""
    return b64encode(public_key)


def decode_public_key(text: str) -> bytes:
    """Return the 33 bytes of a public key in base64 or base64url. Only :func:`load_public_key` checks that it is on the curve.

    Raises:
        InvalidInput: *text* is not 44 characters of base64 for a compressed point.
    """
    data = (
        b64decode_any(text) if len(text.rstrip("=")) == 44 else b""
    )  # some clients pad base64url, which needs no padding
    if len(data) != PUBLIC_KEY_BYTES or data[0] not in (2, 3):
        raise InvalidInput("A public key is 44 characters of base64 (33 bytes, a compressed P-256 point).")
    return data


def load_public_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key object of a compressed point.

    Raises:
        InvalidInput: *public_key* is not 33 bytes, or not a point of P-256.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidInput("A public key has 33 bytes: a compressed P-256 point.")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public_key)
    except ValueError:
        raise InvalidInput("This public key is not a point of P-256.", hint="Copy the key again.") from None


def load_private_key(private_key: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the key object of a 32-byte big-endian scalar.

    Raises:
        InvalidInput: *private_key* is not 32 bytes, is zero, or is not below the group order.
    """
    scalar = int.from_bytes(private_key, "big")
    if len(private_key) != PRIVATE_KEY_BYTES or not 0 < scalar < GROUP_ORDER:
        raise InvalidInput(
            "This is not a private key, which has 32 bytes and a value between 1 and the order of P-256: it is empty or damaged."
        )
    return ec.derive_private_key(scalar, _CURVE)


def public_key_bytes(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    """Return the 33-byte compressed point of a key object."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def generate_private_key() -> bytes:
    """Return a new private key, 32 bytes, from the random source of the operating system."""
    return ec.generate_private_key(_CURVE).private_numbers().private_value.to_bytes(PRIVATE_KEY_BYTES, "big")


def signature_from_der(der: bytes) -> bytes:
    """Return a DER signature, which hardware and OpenSSL make, as ``r || s``: 64 bytes, low-S.

    Raises:
        InvalidInput: *der* is not a DER signature of P-256.
    """
    try:
        r, s = decode_dss_signature(der)
    except ValueError:
        raise InvalidInput("The key store returned something that is not a DER signature.") from None
    if not (0 < r < GROUP_ORDER and 0 < s < GROUP_ORDER):
        raise InvalidInput("The key store returned a signature out of range.")
    if s > HALF_ORDER:
        s = GROUP_ORDER - s
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sign(private_key: bytes | ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the ECDSA P-256 signature of SHA-256(message) as ``r || s``: 64 bytes, low-S, deterministic (RFC 6979).

    Args:
        private_key: 32 bytes, or the key object, which is several times faster.

    Raises:
        InvalidInput: *private_key* is not a private key.
    """
    key = load_private_key(private_key) if isinstance(private_key, bytes) else private_key
    return signature_from_der(key.sign(message, _SIGN))


def verify_signature(public_key: bytes | ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> bool:
    """Return True if *signature* is a valid low-S signature of *message*. Never raises, whatever a peer sends.

    Args:
        public_key: 33 bytes, or the key object, which saves the decompression.
        message: the signed bytes.
        signature: 64 bytes, ``r || s``. High-S, zero and out-of-range values are not valid.
    """
    if len(signature) != SIGNATURE_BYTES:
        return False
    r = int.from_bytes(signature[:32], "big")
    s = int.from_bytes(signature[32:], "big")
    if not (0 < r < GROUP_ORDER and 0 < s <= HALF_ORDER):
        return False
    try:
        key = load_public_key(public_key) if isinstance(public_key, bytes) else public_key
        key.verify(encode_dss_signature(r, s), message, _VERIFY)
    except (InvalidSignature, InvalidInput):
        return False
    return True
