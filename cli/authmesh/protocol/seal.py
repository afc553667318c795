"""The seal of an allow list: canonical JSON, the seal key, HMAC (protocol.md §4, §5; RFC 5869; RFC 2104).

The JSON is written by hand, because rfc8785 cannot write what the reference seals: lone surrogates, integers beyond 2^53, non-finite
numbers, and members in the order of an older file. For every other value, the tests compare the two.
"""

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

#: Shortest secret that a seal key is derived from, in bytes.
KEY_MATERIAL_BYTES = 32
SEALED_MEMBERS = ("version", "devices", "updatedAt")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CANONICAL_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}").fullmatch
#: Largest array index (ECMA-262 §6.1.7).
_MAX_ARRAY_INDEX = 2**32 - 2


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """Return the output of HKDF with SHA-256 (RFC 5869).

    Raises:
        InvalidInput: *secret* is empty.
    """
    if not secret:
        raise InvalidInput(
            "The secret of a key is empty: the key store or the key file is damaged.", hint="Restore it from a backup."
        )
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def seal_key(key_material: bytes, device_id: str) -> bytes:
    """Return the HMAC key of an allow list, 32 bytes.

    Args:
        key_material: at least 32 bytes from the key store.
        device_id: ID of the device that the list belongs to.

    Raises:
        InvalidInput: *key_material* is empty or too short.
    """
    if len(key_material) < KEY_MATERIAL_BYTES:
        raise InvalidInput(
            f"The secret of the seal is empty or truncated: it must have at least {KEY_MATERIAL_BYTES} bytes.",
            hint="Restore it from a backup.",
        )
    return hkdf_sha256(key_material, salt=b"amesh-allow-list-integrity-v1", info=device_id.encode())


def _number(value: float) -> str:
    """Return a number as ECMAScript writes it (ECMA-262 §6.1.6.1.20, Number::toString)."""
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


def _is_array_index(name: str) -> bool:
    return _CANONICAL_NUMBER(name) is not None and int(name) <= _MAX_ARRAY_INDEX


def _names(value: Mapping[str, Any], ordered: bool) -> list[str]:
    if ordered:
        return sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    # ECMAScript enumerates array indices first, ascending, then the other names as inserted (ECMA-262 §10.1.11.1).
    indices = sorted(filter(_is_array_index, value), key=int)
    return [*indices, *(name for name in value if not _is_array_index(name))]


def _dump(value: Any, ordered: bool) -> str:
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        members = [f"{_string(name)}:{_dump(value[name], ordered)}" for name in _names(value, ordered)]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_dump(item, ordered) for item in value) + "]"
    raise InvalidInput(f"A {type(value).__name__} has no JSON form.")


def canonical_json(value: Any) -> bytes:
    """Return JSON without white space, with sorted names at every level, and scalars as ``JSON.stringify`` writes them.

    Names are sorted by UTF-16 code unit.

    Args:
        value: a value as ``json.loads`` returns it.

    Raises:
        InvalidInput: *value* has no JSON form.
    """
    return _dump(value, True).encode()


def seal(document: Mapping[str, Any], key_material: bytes, device_id: str) -> str:
    """Return the seal of an allow list: an HMAC-SHA256 in base64.

    Args:
        document: an object with the members ``version``, ``devices`` and ``updatedAt``. Other members are not sealed.
        key_material: at least 32 bytes from the key store.
        device_id: ID of the device that the list belongs to.

    Raises:
        InvalidInput: a member is missing, or *key_material* is too short.
    """
    if any(name not in document for name in SEALED_MEMBERS):
        raise InvalidInput(
            "The allow list does not have the members version, devices and updatedAt.",
            hint="Restore the list from a backup.",
        )
    message = canonical_json({name: document[name] for name in SEALED_MEMBERS})
    return b64encode(hmac.digest(seal_key(key_material, device_id), message, "sha256"))


def seal_form(
    document: Mapping[str, Any], key_material: bytes, device_id: str
) -> Literal["canonical", "legacy"] | None:
    """Return the form in which ``document["hmac"]`` seals the list, or None if it does not.

    ``legacy`` is a seal over the members in the order of the file, as older versions made it: accept it, then reseal the list.

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
    """Return True if ``document["hmac"]`` seals the list, in either form. Never raises, whatever a file contains.

    Raises:
        InvalidInput: *key_material* is too short.
    """
    return seal_form(document, key_material, device_id) is not None
