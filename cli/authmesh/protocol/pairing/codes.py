"""What both versions of pairing share: one-time code, key agreement, verification code, the other side (protocol.md §6, §6b)."""

from __future__ import annotations

import hmac
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from ..display import clean
from ..errors import InvalidInput
from ..keys import device_id, load_private_key, load_public_key
from .errors import InvalidCode, InvalidPayload

#: Longest message that a relay forwards, in bytes of its JSON text.
MAX_MESSAGE_BYTES: Final = 65_536
#: How long a one-time code lives at the relay, in seconds.
CODE_SECONDS: Final = 60
FIRST_CODE: Final = 100_000
LAST_CODE: Final = 999_999

_SIX_DIGITS = re.compile("[0-9]{6}").fullmatch
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a pairing, once it has proved that it holds its key.

    Attributes:
        public_key: 33 bytes, a point of P-256.
        name: what it calls itself, made fit to be shown; it is stored like that.
    """

    public_key: bytes
    name: str

    @classmethod
    def claiming(cls, public_key: bytes, name: str) -> Peer:
        """A peer with the name that it gave, whatever is in that."""
        return cls(public_key, clean(name))

    @property
    def device_id(self) -> str:
        """``am_`` and 16 characters."""
        return device_id(self.public_key)


def generate_code() -> str:
    """A one-time code, uniform in 100000–999999, from the operating system's random source."""
    return str(FIRST_CODE + secrets.randbelow(LAST_CODE - FIRST_CODE + 1))


def parse_code(text: str) -> str:
    """A one-time code as a person typed it; spaces and hyphens between the digits are forgiven.

    Raises:
        InvalidCode: not six ASCII digits, or below 100000.
    """
    digits = parse_entered(text)
    if digits is None or int(digits) < FIRST_CODE:
        raise InvalidCode()
    return digits


def parse_entered(text: str) -> str | None:
    """Six digits as a person typed them, without spaces and hyphens; None for anything else."""
    digits = re.sub(r"[\s-]", "", text)
    return digits if _SIX_DIGITS(digits) else None


def shared_secret(private_key: bytes, peer_public_key: bytes) -> bytes:
    """The x-coordinate of the Diffie-Hellman point (SP 800-56A §5.7.1.2; RFC 6090 §4), 32 bytes.

    Args:
        private_key: 32 bytes.
        peer_public_key: 33 bytes, compressed, and nothing else.

    Raises:
        InvalidInput: either is not a key of P-256.
    """
    return load_private_key(private_key).exchange(ec.ECDH(), load_public_key(peer_public_key))


def six_digits(number: int) -> str:
    """A verification code: *number* modulo a million, with leading zeros."""
    return f"{number % 1_000_000:06d}"


def verify_sas(entered: str, computed: str) -> bool:
    """True if the code that was typed is the computed one, in constant time; only for six ASCII digits each.

    Nothing never equals nothing: an empty code on both sides is no verification.
    """
    if not _SIX_DIGITS(entered) or not _SIX_DIGITS(computed):
        return False
    return hmac.compare_digest(entered.encode("ascii"), computed.encode("ascii"))


def utf8(text: str) -> bytes:
    """UTF-8 as JavaScript makes it: a lone surrogate becomes U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8")


def parse_object(data: bytes, *, unique: bool) -> dict[str, Any]:
    """A JSON object that came from the other side.

    Args:
        data: UTF-8.
        unique: refuse an object that has a member twice.

    Raises:
        InvalidPayload: not UTF-8, not JSON, not an object, nested beyond reason.
    """

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(members)
        if unique and len(value) != len(members):
            raise InvalidPayload()
        return value

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise InvalidPayload() from None
    if not isinstance(value, dict):
        raise InvalidPayload()
    return value


def check_point(point: bytes) -> bytes:
    """*point*, if it is a compressed point of P-256.

    Raises:
        InvalidPayload: it is none.
    """
    try:
        load_public_key(point)
    except InvalidInput:
        raise InvalidPayload() from None
    return point
