"""Canonical JSON against an independent implementation, and the order of members in the seal of an older file."""

from __future__ import annotations

import datetime as dt
import hmac
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from authmesh.files.storage import json_text
from authmesh.protocol import AllowListIntegrityFailure, InvalidInput, b64encode, seal, seal_key
from authmesh.protocol.allow_list import DeviceEntry, open_document, seal_document
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.seal import canonical_json, seal_form

KEY_MATERIAL = bytes(range(32))
DEVICE_ID = "am_AAAAAAAAAAAAAAAA"

#: The texts, integers and floats that RFC 8785 allows.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(values)
@example({"\U0001f600": 1, "\ufb33": 2, "\u20ac": 3, "1": 4, "\r": 5})  # UTF-16 code units, not code points
@example([1e21, 1e-7, 123456789012345680000.0, 0.000001, -0.0, 5e-324, 1.7976931348623157e308, 333333333.33333329])
def test_canonical_json_is_that_of_rfc_8785(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


def test_canonical_json_of_values_that_rfc_8785_does_not_allow() -> None:
    """The reference seals them as ``JSON.stringify`` writes them."""
    assert canonical_json(["\ud800", 2**53 + 1, float("inf"), float("nan")]) == (
        b'["\\ud800",9007199254740992,null,null]'
    )
    with pytest.raises(InvalidInput, match="A bytes has no JSON form"):
        canonical_json([b""])


def test_an_older_seal_covers_array_indices_first() -> None:
    """``JSON.stringify`` writes array indices first, up to 4294967294, and every other name where it was inserted."""
    inserted = [
        "b",
        "4294967295",
        "4294967294",
        "01",
        "-1",
        "9007199254740991",
        "10",
        "9",
        "4294967296",
        "1e3",
        "\u0661",
    ]
    enumerated = [
        "9",
        "10",
        "4294967294",
        "b",
        "4294967295",
        "01",
        "-1",
        "9007199254740991",
        "4294967296",
        "1e3",
        "\u0661",
    ]
    document = {"version": "2.0.0", "devices": [dict.fromkeys(inserted, 0)], "updatedAt": "2026-03-28T10:05:00.000Z"}
    older = {**document, "devices": [dict.fromkeys(enumerated, 0)]}
    message = json.dumps(older, separators=(",", ":"), ensure_ascii=False).encode()
    document["hmac"] = b64encode(hmac.digest(seal_key(KEY_MATERIAL, DEVICE_ID), message, "sha256"))
    assert seal_form(document, KEY_MATERIAL, DEVICE_ID) == "legacy"
    document["hmac"] = seal(document, KEY_MATERIAL, DEVICE_ID)
    assert seal_form(document, KEY_MATERIAL, DEVICE_ID) == "canonical"


def test_a_number_without_a_json_form_is_sealed_and_written_as_null() -> None:
    """``1e999`` is JSON, but both languages read it as infinity, which JSON cannot express."""
    entry = DeviceEntry.new(
        bytes.fromhex("036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"),
        "laptop",
        "controller",
        added_at=dt.datetime(2026, 3, 28, tzinfo=dt.UTC),
        permissions={"limit": None},
    )
    arguments = {"key_material": KEY_MATERIAL, "device_id": DEVICE_ID}
    document = seal_document([entry], updated_at=dt.datetime(2026, 3, 28, tzinfo=dt.UTC), **arguments)  # type: ignore[arg-type]
    text = json.dumps(document)
    entries, _ = open_document(text.replace("null", "-1e999"), **arguments)  # type: ignore[arg-type]
    assert entries[0].permissions == {"limit": None}
    for literal in ("NaN", "Infinity", "1"):
        with pytest.raises(AllowListIntegrityFailure):
            open_document(text.replace("null", literal), **arguments)  # type: ignore[arg-type]


def test_a_list_with_scopes_that_the_reference_resealed() -> None:
    """Version 0.7.0 of the reference removed a third device from this list, and sealed what it does not know of the others."""
    document = {
        "version": "2.0.0",
        "devices": [
            {
                "deviceId": "am_LlgwqGvSX8MtAuMk",
                "publicKey": "AgyIqTjuvnesk498OUcsHwfUPRX8Juh32xIzIajh+ydv",
                "friendlyName": "device 0",
                "addedAt": "2026-11-28T12:00:00.000Z",
                "addedBy": "manual",
                "role": "controller",
                "permissions": {
                    "shell": True,
                    "scopes": ["orders:read", "ünits", "a"],
                    "limits": {"z": 1, "a": [0.1, 1e21, None]},
                },
            },
            {
                "deviceId": "am_I1Qhr0_84XlaK4Cq",
                "publicKey": "Ax5V4t9ihmAcXz6jgbe+t3SfIccWpa5MRwU8BbOeAgeJ",
                "friendlyName": "device 1",
                "addedAt": "2026-11-28T12:00:00.000Z",
                "addedBy": "manual",
                "role": "controller",
                "permissions": {"scopes": []},
            },
        ],
        "updatedAt": "2026-11-28T18:34:15.185Z",
        "hmac": "Jrc3XVvI4b7lUwZCkaDQ9eHdNzHwih+kCTIAGT2At44=",
    }
    entries, stale = open_document(json_text(document), key_material=KEY_MATERIAL, device_id=DEVICE_ID)
    assert not stale
    at = parse_time(str(document["updatedAt"]))
    again = seal_document(entries, key_material=KEY_MATERIAL, device_id=DEVICE_ID, updated_at=at)
    assert json_text(again) == json_text(document)
