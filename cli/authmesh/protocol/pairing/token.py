"""Bootstrap tokens, which pair a device without a person at it (protocol.md §7)."""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from ..encoding import b64decode, b64encode, b64url_decode, b64url_encode
from ..errors import InvalidInput
from ..keys import decode_public_key, device_id, encode_public_key, load_public_key, verify_signature
from .token_errors import (
    InvalidAcknowledgement,
    InvalidInit,
    InvalidTokenFormat,
    InvalidTokenSignature,
    InvalidTokenType,
    TokenError,
    TokenExpired,
    TokenMustBeSingleUse,
    TokenNotYetValid,
    UnsupportedTokenAlgorithm,
    UnsupportedTokenScope,
    UnsupportedTokenVersion,
)

PREFIX: Final = "amesh-bt-v1."
TYPE: Final = "amesh-bootstrap"
VERSION: Final = "1"
ALGORITHM: Final = "ES256"
SCOPE: Final = "peer:add"
#: Longest lifetime of a token, in seconds.
MAX_LIFE_SECONDS: Final = 24 * 60 * 60
#: Largest lead of its time of issue over the clock of this device, in seconds.
MAX_AHEAD_SECONDS: Final = 60
KEY_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 8192

_JTI = re.compile("bt_[0-9a-f]{32}").fullmatch


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """A verified token.

    Attributes:
        issuer: device ID of the controller that made it.
        public_key: public key of the controller, 33 bytes.
        issued_at: time of issue, Unix seconds.
        expires_at: time of expiry, Unix seconds.
        jti: number of the token, ``bt_`` and 32 hex characters.
        name: name that the controller gives to the new device, or its own name. Clean it before you show it.
        relay: ``ws://`` or ``wss://`` address of the relay.
        key: 32 secret bytes that only the two devices know; None in a token of the reference.
    """

    issuer: str
    public_key: bytes
    issued_at: int
    expires_at: int
    jti: str
    name: str
    relay: str
    key: bytes | None = field(repr=False)


class DecodedToken(NamedTuple):
    """The parts of a token. None of them is verified: do not act on them.

    Attributes:
        header: the JSON object of the header.
        payload: the JSON value of the payload, of any type.
        signed: the text that the signature covers.
        signature: the signature, as it is in the token.
    """

    header: dict[str, Any]
    payload: Any
    signed: str
    signature: str


def is_relay_address(text: str) -> bool:
    """Return True for an absolute ``ws://`` or ``wss://`` address without user, fragment, spaces or control characters."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("ws", "wss")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and not parts.fragment
            and text.isascii()
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def _part(value: dict[str, Any]) -> str:
    return b64url_encode(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def build_token(
    *,
    public_key: bytes,
    name: str,
    relay: str,
    issued_at: int,
    lifetime: int,
    sign: Callable[[bytes], bytes],
    jti: str | None = None,
    key: bytes | None = None,
) -> str:
    """Return a new token.

    Args:
        public_key: public key of the controller, 33 bytes.
        name: friendly name of the new device.
        relay: address of the relay where the controller waits.
        issued_at: time of issue, Unix seconds.
        lifetime: lifetime in seconds, at most 24 hours.
        sign: returns a signature made with the key of the controller, 64 bytes.
        jti: number of the token. Defaults to a random one.
        key: secret of the token, 32 bytes. Defaults to random bytes.

    Raises:
        InvalidInput: *lifetime* is not from 1 to 86,400 seconds, or *relay* is not the address of a relay.
    """
    if not 0 < lifetime <= MAX_LIFE_SECONDS:
        raise InvalidInput(
            "The lifetime of a bootstrap token must be from 1 second to 24 hours.", hint="Choose another --ttl."
        )
    if not is_relay_address(relay):
        raise InvalidInput(
            "The address of the relay is not valid.",
            hint="It starts with wss:// (or ws://), such as wss://relay.example/ws.",
        )
    payload = {
        "iss": device_id(public_key),
        "pub": encode_public_key(public_key),
        "iat": issued_at,
        "exp": issued_at + lifetime,
        "jti": jti or f"bt_{secrets.token_hex(16)}",
        "name": name,
        "relay": relay,
        "scope": SCOPE,
        "single_use": True,
        "key": b64url_encode(key or secrets.token_bytes(KEY_BYTES)),
    }
    signed = f"{_part({'typ': TYPE, 'ver': VERSION, 'alg': ALGORITHM})}.{_part(payload)}"
    return f"{PREFIX}{signed}.{b64url_encode(sign(signed.encode('ascii')))}"


def decode_token(text: str) -> DecodedToken:
    """Return the parts of a token without verifying them, which :func:`verify_token` does.

    A line break at the end is ignored, because files end with one.

    Raises:
        InvalidTokenFormat: *text* is not the prefix and three parts of base64url, the first two JSON.
        InvalidTokenType, UnsupportedTokenVersion: the header has another type or version.
    """
    text = text.rstrip("\r\n")
    parts = text[len(PREFIX) :].split(".")
    if len(text) > MAX_TOKEN_CHARACTERS or not text.startswith(PREFIX) or len(parts) != 3:
        raise InvalidTokenFormat()
    try:
        header, payload = [json.loads(b64url_decode(part).decode("utf-8")) for part in parts[:2]]
    except (ValueError, RecursionError):
        raise InvalidTokenFormat() from None
    if not isinstance(header, dict) or payload is None:
        raise InvalidTokenFormat()
    if header.get("typ") != TYPE:
        raise InvalidTokenType()
    if header.get("ver") != VERSION:
        raise UnsupportedTokenVersion()
    return DecodedToken(header, payload, f"{parts[0]}.{parts[1]}", parts[2])


def verify_token(text: str, *, now: float, controller_key: bytes | None = None) -> BootstrapToken:
    """Verify a token with the key that it contains. Do not connect to the relay that it names before.

    Args:
        text: the token.
        now: the current time, Unix seconds.
        controller_key: public key of this device, 33 bytes, if this device made the token itself.

    Raises:
        TokenError: the token cannot be used. The first of these that applies: the errors of :func:`decode_token`;
            UnsupportedTokenAlgorithm, UnsupportedTokenScope, TokenMustBeSingleUse, TokenNotYetValid, TokenExpired; InvalidTokenFormat,
            if a member is missing or malformed, or the lifetime is not from 1 second to 24 hours; InvalidTokenSignature, also if
            ``iss`` is not the device ID of ``pub``.
    """
    token = decode_token(text)
    payload: dict[str, Any] = token.payload if isinstance(token.payload, dict) else {}
    if token.header.get("alg") != ALGORITHM:
        raise UnsupportedTokenAlgorithm()
    if payload.get("scope") != SCOPE:
        raise UnsupportedTokenScope()
    if payload.get("single_use") is not True:
        raise TokenMustBeSingleUse()
    issued_at: Any = payload.get("iat")
    expires_at: Any = payload.get("exp")
    if not _is_number(issued_at) or issued_at - int(now) > MAX_AHEAD_SECONDS:
        raise TokenNotYetValid()
    if not _is_number(expires_at) or int(now) >= expires_at:
        raise TokenExpired()
    verified = _members(payload)
    if not 0 < expires_at - issued_at <= MAX_LIFE_SECONDS:
        raise InvalidTokenFormat(
            "The lifetime of this token is not from 1 second to 24 hours.", hint=TokenError.default_hint
        )
    is_own = controller_key is None or hmac.compare_digest(controller_key, verified.public_key)
    if not is_own or verified.issuer != device_id(verified.public_key):
        raise InvalidTokenSignature()
    try:
        signature = b64url_decode(token.signature)
    except InvalidInput:
        raise InvalidTokenSignature() from None
    if not verify_signature(verified.public_key, token.signed.encode("ascii"), signature):
        raise InvalidTokenSignature()
    return verified


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _members(payload: dict[str, Any]) -> BootstrapToken:
    texts = {name: payload.get(name) for name in ("iss", "pub", "jti", "name", "relay")}
    if not all(isinstance(text, str) for text in (*texts.values(), payload.get("key", ""))):
        raise InvalidTokenFormat()
    if type(payload["iat"]) is not int or type(payload["exp"]) is not int:
        raise InvalidTokenFormat()
    issuer, pub, jti, name, relay = cast("list[str]", list(texts.values()))
    try:
        public_key = decode_public_key(pub)
        load_public_key(public_key)
        key = b64url_decode(payload["key"]) if "key" in payload else None
    except InvalidInput:
        raise InvalidTokenFormat() from None
    if not _JTI(jti) or not is_relay_address(relay) or (key is not None and len(key) != KEY_BYTES):
        raise InvalidTokenFormat()
    return BootstrapToken(issuer, public_key, payload["iat"], payload["exp"], jti, name, relay, key)


# --- what travels over the relay ------------------------------------------------------------------------------------


def init_message(target_public_key: bytes, jti: str) -> bytes:
    """Return the bytes that a target proves and signs when it uses a token."""
    return f"amesh-bootstrap-init-v2\n{encode_public_key(target_public_key)}\n{jti}".encode()


def init_proof(key: bytes, target_public_key: bytes, jti: str) -> str:
    """Return the proof that the target holds the token: an HMAC-SHA256 with the key of the token, in base64 (RFC 2104).

    Args:
        key: key of the token, 32 bytes.
        target_public_key: 33 bytes.
        jti: number of the token.
    """
    return b64encode(hmac.digest(key, init_message(target_public_key, jti), "sha256"))


def verify_init(*, key: bytes, jti: str, target_public_key: str, proof: str, target_signature: str) -> bytes:
    """Return the public key of a target that may be enrolled, 33 bytes.

    The target must prove that it holds the key of the token, and sign with the key to enroll.

    Args:
        key: key of an open token of this controller, 32 bytes.
        jti: number of that token.
        target_public_key: public key that came over the relay.
        proof: proof that came over the relay.
        target_signature: signature that came over the relay.

    Raises:
        InvalidInit: the proof or the signature is not valid. Store nothing.
    """
    try:
        public_key = decode_public_key(target_public_key)
        given, signature = b64decode(proof), b64decode(target_signature)
    except InvalidInput:
        raise InvalidInit() from None
    if target_public_key != encode_public_key(public_key):
        raise InvalidInit()
    message = init_message(public_key, jti)
    proven = hmac.compare_digest(hmac.digest(key, message, "sha256"), given)
    if not proven or not verify_signature(public_key, message, signature):
        raise InvalidInit()
    return public_key


def acknowledgement_message(target_public_key: bytes, jti: str) -> bytes:
    """Return the bytes that the controller signs after it has stored a target."""
    return f"amesh-bootstrap-ack-v1\n{encode_public_key(target_public_key)}\n{jti}".encode()


def verify_acknowledgement(
    token: BootstrapToken, *, target_public_key: bytes, controller_public_key: str, controller_signature: str
) -> None:
    """Check that the controller which made the token has stored this device.

    The signature must be made with the key in the token, never with a key that came over the relay.

    Args:
        token: a verified token.
        target_public_key: public key of this device, 33 bytes.
        controller_public_key: public key that came over the relay.
        controller_signature: signature that came over the relay, base64.

    Raises:
        InvalidAcknowledgement: the key is another one, or the signature is not valid. Store nothing.
    """
    try:
        stated, signature = decode_public_key(controller_public_key), b64decode(controller_signature)
    except InvalidInput:
        raise InvalidAcknowledgement() from None
    message = acknowledgement_message(target_public_key, token.jti)
    if not hmac.compare_digest(stated, token.public_key) or not verify_signature(token.public_key, message, signature):
        raise InvalidAcknowledgement()
