"""The signed list of a hub: all keys that it has revoked, as a JWS (RFC 7515), which a server can verify by itself (docs/fleet.md §5)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from authmesh.protocol.encoding import b64url_decode, parse_time
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.fleet.errors import MalformedFeed, UnverifiedMessage
from authmesh.protocol.fleet.events import serial, text
from authmesh.protocol.keys import load_public_key

TYPE: Final = "amesh-revocations+jwt"
ALGORITHM: Final = "ES256"
#: Largest difference between the clocks of hub and server, in seconds.
_MAX_SKEW_SECONDS = 60
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key that the hub has revoked.

    Attributes:
        key: SHA-256 of the public key, 32 bytes.
        serial: revision of the hub's list.
        at: time at the hub.
    """

    key: bytes
    serial: int
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class SignedList:
    """A list that was verified.

    Attributes:
        issuer: device ID of the hub.
        url: address of the hub.
        epoch: epoch of the hub's list.
        serial: its revision.
        expires_at: Unix seconds after which it is not accepted.
        revoked: the keys.
    """

    issuer: str
    url: str
    epoch: str
    serial: int
    expires_at: int
    revoked: Sequence[Revoked]


def verify(jws: str, *, issuer: str, issuer_key: bytes, now: float, newest: tuple[str, int] = ("", 0)) -> SignedList:
    """Return the list in a JWS, after its signature was verified.

    Args:
        jws: compact serialization.
        issuer: device ID of the hub.
        issuer_key: public key of the hub, 33 bytes.
        now: Unix seconds.
        newest: epoch and serial of the newest list of this hub that was accepted.

    Raises:
        UnverifiedMessage: the hub did not sign it, it has expired, or it is older than *newest*.
    """
    unchecked = dict.fromkeys(
        ("verify_exp", "verify_iat", "verify_nbf", "verify_aud", "verify_iss", "verify_sub"), False
    )
    try:
        if jwt.get_unverified_header(jws).get("typ") != TYPE:
            raise UnverifiedMessage()
        # The claims are checked below, with the time that was given.
        value = jwt.decode(jws, load_public_key(issuer_key), algorithms=[ALGORITHM], options=unchecked)  # type: ignore[arg-type]
        found = _list(value)
    except (jwt.PyJWTError, InvalidInput, MalformedFeed, RecursionError):
        raise UnverifiedMessage() from None
    if found.issuer != issuer:
        raise UnverifiedMessage("The signed list is that of another hub. Nothing was changed.")
    if not value["iat"] - _MAX_SKEW_SECONDS <= now < found.expires_at:
        raise UnverifiedMessage("The signed list has expired, or is not valid yet. Nothing was changed.")
    if found.epoch == newest[0] and found.serial < newest[1]:
        raise UnverifiedMessage("The signed list is older than one that this server has accepted. Nothing was changed.")
    return found


def _list(value: Any) -> SignedList:
    raw = value.get("revoked")
    if not isinstance(raw, list):
        raise MalformedFeed()
    serial(value, "iat")
    revoked = []
    for one in raw:
        if not isinstance(one, dict):
            raise MalformedFeed()
        key = b64url_decode(text(one, "key"))
        if len(key) != _HASH_BYTES:
            raise MalformedFeed()
        revoked.append(Revoked(key, serial(one, "serial"), parse_time(text(one, "at"))))
    epoch = text(value, "epoch")
    if not 0 < len(epoch) <= 32:
        raise MalformedFeed()
    return SignedList(
        text(value, "iss"), text(value, "sub"), epoch, serial(value, "serial"), serial(value, "exp"), revoked
    )
