"""Sealing the allow list: canonical JSON, seal key, HMAC (protocol.md §4, §5; RFC 5869; RFC 2104)."""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .encoding import b64decode_any, b64encode
from .errors import InvalidInput

#: Shortest secret that a seal is made from, in bytes.
KEY_MATERIAL_BYTES = 32
SEALED_MEMBERS = ("version", "devices", "updatedAt")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER_INDEX = re.compile(r"0|[1-9][0-9]{0,9}").fullmatch


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF with SHA-256 (RFC 5869).

    Raises:
        InvalidInput: *secret* is empty.
    """
    if not secret:
        raise InvalidInput("An empty secret is never a key; the key store or the key file is damaged.")
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def seal_key(key_material: bytes, device_id: str) -> bytes:
    """The HMAC key of an allow list, 32 bytes.

    Args:
        key_material: at least 32 bytes out of the key store.
        device_id: of the device whose list it is.

    Raises:
        InvalidInput: *key_material* is empty or too short.
    """
    if len(key_material) < KEY_MATERIAL_BYTES:
        raise InvalidInput(
            "The secret of the seal is empty or truncated (32 bytes are needed); restore it from a backup."
        )
    return hkdf_sha256(key_material, salt=b"amesh-allow-list-integrity-v1", info=device_id.encode())


def _number(value: float) -> str:
    """A number as ECMAScript writes it (ECMA-262 §6.1.6.1.20, Number::toString)."""
    value = float(value)
    if not math.isfinite(value):
        return "null"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent_text = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    point = len(whole) + int(exponent_text or 0)
    digits = whole + fraction
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    k = len(digits)
    if k <= point <= 21:
        return sign + digits + "0" * (point - k)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    exponent = point - 1
    tail = "." + digits[1:] if k > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if exponent > 0 else '-'}{abs(exponent)}"


def _string(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if _LONE_SURROGATE.search(text):
        text = _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
    return text


def _dump(value: Any, ordered: bool) -> str:
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        if ordered:
            names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        else:  # as a JavaScript engine enumerates: integer-like names first, ascending
            names = sorted(filter(_INTEGER_INDEX, value), key=int) + [n for n in value if not _INTEGER_INDEX(n)]
        return "{" + ",".join(f"{_string(name)}:{_dump(value[name], ordered)}" for name in names) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_dump(item, ordered) for item in value) + "]"
    raise InvalidInput(f"A {type(value).__name__} has no JSON form.")


def canonical_json(value: Any) -> bytes:
    """JSON without white space, keys sorted by UTF-16 code unit at every level, scalars as ``JSON.stringify`` writes them.

    Args:
        value: what ``json.loads`` returns.

    Raises:
        InvalidInput: a value that has no JSON form.
    """
    return _dump(value, True).encode()


def seal(document: Mapping[str, Any], key_material: bytes, device_id: str) -> str:
    """The seal of an allow list, base64 of HMAC-SHA256.

    Args:
        document: with the members ``version``, ``devices``, ``updatedAt``; others are not sealed.
        key_material: at least 32 bytes out of the key store.
        device_id: of the device whose list it is.

    Raises:
        InvalidInput: a member is missing, or *key_material* is too short.
    """
    if any(name not in document for name in SEALED_MEMBERS):
        raise InvalidInput("An allow list has the members version, devices and updatedAt; restore it from a backup.")
    message = canonical_json({name: document[name] for name in SEALED_MEMBERS})
    return b64encode(hmac.digest(seal_key(key_material, device_id), message, "sha256"))


def seal_form(
    document: Mapping[str, Any], key_material: bytes, device_id: str
) -> Literal["canonical", "legacy"] | None:
    """Which form of the seal in ``document["hmac"]`` matches; None where none does.

    ``legacy`` is a seal over the members in the order that the file has them (older files): verify, then seal anew.

    Raises:
        InvalidInput: *key_material* is too short.
    """
    key = seal_key(key_material, device_id)
    try:
        found = b64decode_any(document["hmac"]) if isinstance(document.get("hmac"), str) else b""
        members = {name: document[name] for name in SEALED_MEMBERS}
        canonical = hmac.digest(key, canonical_json(members), "sha256")
        legacy = hmac.digest(key, _dump(members, False).encode(), "sha256")
    except (InvalidInput, KeyError, RecursionError):
        return None
    if hmac.compare_digest(canonical, found):
        return "canonical"
    return "legacy" if hmac.compare_digest(legacy, found) else None


def verify_seal(document: Mapping[str, Any], key_material: bytes, device_id: str) -> bool:
    """True if ``document["hmac"]`` seals the list, in either form. Constant time; never raises for what a file can hold.

    Raises:
        InvalidInput: *key_material* is too short.
    """
    return seal_form(document, key_material, device_id) is not None
