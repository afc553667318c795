"""Bootstrap tokens: how a device is paired with nobody at it (protocol.md §7)."""

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
from .errors import (
    InvalidAcknowledgement,
    InvalidInit,
    InvalidTokenFormat,
    InvalidTokenSignature,
    InvalidTokenType,
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
#: Longest life of a token, and how far its time of issue may be ahead, in seconds.
MAX_LIFE_SECONDS: Final = 24 * 60 * 60
MAX_AHEAD_SECONDS: Final = 60
KEY_BYTES: Final = 32
MAX_TOKEN_CHARACTERS: Final = 8192

_JTI = re.compile("bt_[0-9a-f]{32}").fullmatch


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """A token that was verified in full.

    Attributes:
        issuer: device id of the controller.
        public_key: its key, 33 bytes.
        issued_at: Unix seconds.
        expires_at: Unix seconds; from then on the token is refused.
        jti: its number, ``bt_`` and 32 hex characters.
        name: what the controller calls the device that is to come, or itself; clean it before it is shown.
        relay: ``ws://`` or ``wss://`` address.
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
    """The parts of a token. Nothing in it is verified: never act on it.

    Attributes:
        header: the JSON object of the header.
        payload: the JSON value of the payload, of any type.
        signed: the text that the signature covers.
        signature: as it stands in the token.
    """

    header: dict[str, Any]
    payload: Any
    signed: str
    signature: str


def is_relay_address(text: str) -> bool:
    """True for an absolute ``ws://`` or ``wss://`` address without user, fragment, spaces or control characters."""
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
    """A new token.

    Args:
        public_key: the controller's, 33 bytes.
        name: friendly name.
        relay: address of the relay where the controller waits.
        issued_at: Unix seconds.
        lifetime: in seconds, at most 24 hours.
        sign: signs with the controller's key, 64 bytes.
        jti: None takes a random one.
        key: 32 bytes; None takes random ones.

    Raises:
        InvalidInput: a lifetime that is not from 1 to 86,400 s, or not the address of a relay.
    """
    if not 0 < lifetime <= MAX_LIFE_SECONDS:
        raise InvalidInput("A bootstrap token lives from 1 second to 24 hours. Choose another --ttl.")
    if not is_relay_address(relay):
        raise InvalidInput("The address of a relay begins with wss:// (or ws://), such as wss://relay.example/ws.")
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
    """Take a token apart. This verifies nothing: :func:`verify_token` does.

    A line break at its end is forgiven: that is how files end.

    Raises:
        InvalidTokenFormat: not three parts of base64url JSON after the prefix.
        InvalidTokenType, UnsupportedTokenVersion: the header says that it is something else.
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
    """Verify a token in full, with the key that it carries. Only then may the relay that it names be dialled.

    Args:
        now: Unix seconds.
        controller_key: the controller, which verifies its own token, gives its key here (33 bytes).

    Raises:
        TokenError: what :func:`decode_token` raises; UnsupportedTokenAlgorithm, UnsupportedTokenScope, TokenMustBeSingleUse,
            TokenNotYetValid, TokenExpired; InvalidTokenFormat also for a member missing or malformed and for a life that is not
            from 1 s to 24 h; InvalidTokenSignature also where ``iss`` is not the device id of ``pub``. In that order.
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
        raise InvalidTokenFormat("This token would live longer than 24 hours, or not at all. Make one with provision.")
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
    """What a target proves and signs when it comes with a token."""
    return f"amesh-bootstrap-init-v2\n{encode_public_key(target_public_key)}\n{jti}".encode()


def init_proof(key: bytes, target_public_key: bytes, jti: str) -> str:
    """The proof that the target holds the token: base64 of HMAC-SHA256 with the token's key (RFC 2104).

    Args:
        key: 32 bytes.
        target_public_key: 33 bytes.
    """
    return b64encode(hmac.digest(key, init_message(target_public_key, jti), "sha256"))


def verify_init(*, key: bytes, jti: str, target_public_key: str, proof: str, target_signature: str) -> bytes:
    """Whom the controller may enrol: who holds the token's key and signed with the key that is to be enrolled.

    Args:
        key: of the controller's own open token, 32 bytes.
        jti: of that token.
        target_public_key: as it came over the relay.
        proof: as it came.
        target_signature: as it came.

    Returns:
        the target's public key, 33 bytes.

    Raises:
        InvalidInit: proof or signature does not hold. Nothing may be stored.
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
    """What the controller signs when it has let a target in."""
    return f"amesh-bootstrap-ack-v1\n{encode_public_key(target_public_key)}\n{jti}".encode()


def verify_acknowledgement(
    token: BootstrapToken, *, target_public_key: bytes, controller_public_key: str, controller_signature: str
) -> None:
    """The controller of the token must have let this device in: its key is the token's, never one that the relay gives.

    Args:
        token: verified.
        target_public_key: this device's, 33 bytes.
        controller_public_key: as it came over the relay.
        controller_signature: as it came, base64.

    Raises:
        InvalidAcknowledgement: another key, or not signed by the token's. Nothing may be stored.
    """
    try:
        stated, signature = decode_public_key(controller_public_key), b64decode(controller_signature)
    except InvalidInput:
        raise InvalidAcknowledgement() from None
    message = acknowledgement_message(target_public_key, token.jti)
    if not hmac.compare_digest(stated, token.public_key) or not verify_signature(token.public_key, message, signature):
        raise InvalidAcknowledgement()
