"""The pure functions against the cases that the reference produced (vectors/)."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from authmesh import protocol

pytestmark = pytest.mark.unversioned

VECTORS = Path(__file__).parent / "vectors"


def cases(name: str) -> list[Any]:
    """Return the cases of a vector file, each with a readable ID."""
    document = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return [pytest.param(case, id=f"{case.get('tag', 'case')}-{i}") for i, case in enumerate(document["cases"])]


@pytest.mark.parametrize("case", cases("canonical"))
def test_canonical_string(case: dict[str, Any]) -> None:
    body = base64.b64decode(case.get("body_b64") or "")
    arguments = (case["method"], case["path"], case["ts"], case["nonce"], body)
    if "error" in case:
        with pytest.raises(protocol.InvalidInput):
            protocol.canonical_string(*arguments)
    else:
        assert protocol.canonical_string(*arguments) == case["canonical"]


@pytest.mark.parametrize("case", cases("device_id"))
def test_device_id(case: dict[str, Any]) -> None:
    assert protocol.device_id(protocol.b64decode(case["public_key_b64"])) == case["device_id"]


@pytest.mark.parametrize("case", cases("signature"))
def test_signature(case: dict[str, Any]) -> None:
    message = bytes.fromhex(case["message_hex"])
    try:
        signature = protocol.b64url_decode(case["signature_b64url"])
    except protocol.InvalidInput:
        assert not case["expected"]
        return
    public_key = base64.b64decode(case["public_key_b64"])
    expected = case["expected"] is True and len(public_key) == 33  # the reference also accepts uncompressed keys
    assert protocol.verify_signature(public_key, message, signature) is expected
    if case.get("deterministic"):
        assert protocol.sign(bytes.fromhex(case["private_key_hex"]), message) == signature


STRICT_HEADER = re.compile(
    r'AuthMesh +(?:(?:v="[^"]{1,8}"|id="[A-Za-z0-9+/=_-]{1,128}"|ts="[0-9]{1,16}"|nonce="[A-Za-z0-9_-]{1,64}"|'
    r'sig="[A-Za-z0-9+/=_-]{1,256}")(?: *, *(?=[a-z])|$)){5}'
).fullmatch


@pytest.mark.parametrize("case", cases("header"))
def test_header(case: dict[str, Any]) -> None:
    header, parsed = case["header"], case["parsed"]
    if header is None:
        return
    if parsed is None or not STRICT_HEADER(header):
        with pytest.raises(protocol.MalformedHeader):
            protocol.parse_authorization(header)
    else:
        found = protocol.parse_authorization(header)
        assert {name: getattr(found, name) for name in ("v", "id", "ts", "nonce", "sig")} == parsed


def test_header_vectors_hold_both_outcomes() -> None:
    """Headers with these tags stay accepted, so that the strict form does not simply reject everything."""
    accepted = {
        p.values[0]["tag"] for p in cases("header") if p.values[0]["parsed"] and STRICT_HEADER(p.values[0]["header"])
    }
    assert {"valid", "reordered", "id_base64url", "odd_version", "separator", "scheme"} - accepted <= {"scheme"}
    refused = {
        p.values[0]["tag"]
        for p in cases("header")
        if p.values[0]["parsed"] and not STRICT_HEADER(p.values[0]["header"])
    }
    assert {"trailing", "leading_garbage", "key_prefix", "escaped_quote", "newline_in_value", "nested"} <= refused


@pytest.mark.parametrize("case", cases("seal"))
def test_sealed_document(case: dict[str, Any]) -> None:
    material = bytes.fromhex(case["hmac_key_material_hex"])
    expected = case["expected"]
    if not expected["ok"]:
        with pytest.raises(protocol.AllowListIntegrityFailure):
            protocol.open_document(case["file"], key_material=material, device_id=case["device_id"])
        return
    entries, stale = protocol.open_document(case["file"], key_material=material, device_id=case["device_id"])
    assert stale is expected["resealed"]
    assert [entry.to_json() for entry in entries] == expected["devices"]
