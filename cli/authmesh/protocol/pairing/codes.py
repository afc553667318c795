"""The parts that both versions of pairing share: one-time code, key agreement, verification code, peer (protocol.md §6, §6b)."""

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

#: Longest message that a relay forwards, in bytes of JSON text.
MAX_MESSAGE_BYTES: Final = 65_536
#: Lifetime of a one-time code at the relay, in seconds.
CODE_SECONDS: Final = 60
FIRST_CODE: Final = 100_000
LAST_CODE: Final = 999_999

_SIX_DIGITS = re.compile("[0-9]{6}").fullmatch
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Peer:
    """The other device of a pairing, after it has proven that it holds its key.

    Attributes:
        public_key: 33 bytes, a point of P-256.
        name: name that the device chose, cleaned so that it is safe to show and store.
    """

    public_key: bytes
    name: str

    @classmethod
    def claiming(cls, public_key: bytes, name: str) -> Peer:
        """Return a peer with the cleaned form of an untrusted name."""
        return cls(public_key, clean(name))

    @property
    def device_id(self) -> str:
        """The device ID of the key."""
        return device_id(self.public_key)


def generate_code() -> str:
    """Return a one-time code, uniform in 100000–999999, from the random source of the operating system."""
    return str(FIRST_CODE + secrets.randbelow(LAST_CODE - FIRST_CODE + 1))


def parse_code(text: str) -> str:
    """Return the one-time code that a person typed. Spaces and hyphens are ignored.

    Raises:
        InvalidCode: *text* does not have six ASCII digits, or is less than 100000.
    """
    digits = parse_entered(text)
    if digits is None or int(digits) < FIRST_CODE:
        raise InvalidCode()
    return digits


def parse_entered(text: str) -> str | None:
    """Return the six digits that a person typed, without spaces and hyphens, or None if it is anything else."""
    digits = re.sub(r"[\s-]", "", text)
    return digits if _SIX_DIGITS(digits) else None


def shared_secret(private_key: bytes, peer_public_key: bytes) -> bytes:
    """Return the x-coordinate of the Diffie-Hellman point, 32 bytes (SP 800-56A §5.7.1.2; RFC 6090 §4).

    Args:
        private_key: 32 bytes.
        peer_public_key: 33 bytes, compressed.

    Raises:
        InvalidInput: one of the two is not a key of P-256.
    """
    return load_private_key(private_key).exchange(ec.ECDH(), load_public_key(peer_public_key))


def six_digits(number: int) -> str:
    """Return a verification code: *number* modulo a million, with leading zeros."""
    return f"{number % 1_000_000:06d}"


def verify_sas(entered: str, computed: str) -> bool:
    """Return True if the typed verification code is the computed one. Compares in constant time.

    Both must have six ASCII digits: two empty codes are equal, but verify nothing.
    """
    if not _SIX_DIGITS(entered) or not _SIX_DIGITS(computed):
        return False
    return hmac.compare_digest(entered.encode("ascii"), computed.encode("ascii"))


def utf8(text: str) -> bytes:
    """Encode *text* as UTF-8 as JavaScript does: a lone surrogate becomes U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8")


def parse_object(data: bytes, *, unique: bool) -> dict[str, Any]:
    """Parse a JSON object that the other device sent.

    Args:
        data: JSON in UTF-8.
        unique: True to reject an object with a repeated member.

    Raises:
        InvalidPayload: *data* is not UTF-8, not JSON, not an object, or nested too deeply.
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
    """Return *point* if it is a compressed point of P-256.

    Raises:
        InvalidPayload: it is not.
    """
    try:
        load_public_key(point)
    except InvalidInput:
        raise InvalidPayload() from None
    return point
