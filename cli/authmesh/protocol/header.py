"""The Authorization header: a strict parser and a builder (protocol.md §2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from .encoding import b64url_encode
from .errors import InvalidInput, MalformedHeader
from .keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, encode_public_key

#: The authentication scheme, in exact case.
SCHEME = "AuthMesh"
MAX_HEADER_CHARACTERS = 1024

_PAIR = r'(v|id|ts|nonce|sig)="([^"]+)"'
_HEADER = re.compile(rf"{SCHEME} +{_PAIR}" + rf" *, *{_PAIR}" * 4).fullmatch
_IN_ORDER = re.compile(
    rf'{SCHEME} v="([A-Za-z0-9._-]{{1,8}})",id="([A-Za-z0-9+/=_-]{{1,128}})",ts="([0-9]{{1,16}})",'
    r'nonce="([A-Za-z0-9_-]{1,64})",sig="([A-Za-z0-9+/=_-]{1,256})"'
).fullmatch
_VALUE = {
    "v": re.compile(r"[\x20-\x7e]{1,8}").fullmatch,
    "id": re.compile(r"[A-Za-z0-9+/=_-]{1,128}").fullmatch,
    "ts": re.compile(r"[0-9]{1,16}").fullmatch,
    "nonce": re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch,
    "sig": re.compile(r"[A-Za-z0-9+/=_-]{1,256}").fullmatch,
}


class Authorization(NamedTuple):
    """The five members of the header as text. Only their form has been checked.

    Attributes:
        v: version, which selects the scheme, 1–8 characters.
        id: public key in base64 or base64url, 1–128 characters.
        ts: Unix seconds, 1–16 decimal digits.
        nonce: 1–64 characters of the base64url alphabet.
        sig: signature in base64url or base64, 1–256 characters.
    """

    v: str
    id: str
    ts: str
    nonce: str
    sig: str


def is_amesh(value: str) -> bool:
    """Return True if a header names this scheme, in any case, so that a malformed one is rejected and not ignored."""
    return value.lstrip()[: len(SCHEME)].lower() == SCHEME.lower() and not value.lstrip()[len(SCHEME) :][:1].isalnum()


def parse_authorization(value: str) -> Authorization:
    """Parse the value of an Authorization header.

    Raises:
        MalformedHeader: *value* has more than 1024 characters or another scheme; a member is missing, repeated, unknown, too long or
            has a wrong alphabet; or there is anything but commas and spaces between the members.
    """
    if len(value) > MAX_HEADER_CHARACTERS:
        raise MalformedHeader()
    match = _IN_ORDER(value)  # the form that clients send; the general form is several times slower
    if match:
        return Authorization._make(match.groups())
    match = _HEADER(value)
    if not match:
        raise MalformedHeader()
    groups = match.groups()
    members = {name: text for name, text in zip(groups[::2], groups[1::2], strict=True) if name}
    if members.keys() != _VALUE.keys() or not all(_VALUE[name](text) for name, text in members.items()):
        raise MalformedHeader()
    return Authorization(**members)


def build_authorization(*, public_key: bytes, timestamp: int, nonce: str, signature: bytes, version: str = "1") -> str:
    """Return the value of the Authorization header of a signed request.

    Args:
        public_key: 33 bytes, compressed point.
        timestamp: Unix seconds.
        nonce: 22 characters of base64url (16 random bytes).
        signature: 64 bytes, ``r || s``, low-S.
        version: version of the scheme.

    Raises:
        InvalidInput: :func:`parse_authorization` would reject a member.
    """
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise InvalidInput("A header needs a public key of 33 bytes and a signature of 64 bytes.")
    value = (
        f'{SCHEME} v="{version}",id="{encode_public_key(public_key)}",ts="{timestamp}",'
        f'nonce="{nonce}",sig="{b64url_encode(signature)}"'
    )
    if not _IN_ORDER(value):
        raise InvalidInput("The timestamp must be Unix seconds, and the nonce 1–64 characters of base64url.")
    return value
