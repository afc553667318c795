"""Bootstrap tokens: the cases of the reference, our stricter rules, and the frames that use a token."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest

from authmesh.protocol import keys
from authmesh.protocol.encoding import b64encode, b64url_encode
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.pairing import token as bootstrap
from authmesh.protocol.pairing.token_errors import InvalidAcknowledgement, InvalidInit, TokenError
from tests.protocol.test_protocol_vectors import VECTORS, cases

CONTROLLER_KEY = bytes.fromhex(json.loads((VECTORS / "bootstrap.json").read_text())["controller_private_key_hex"])
CONTROLLER_PUBLIC = keys.public_key_bytes(keys.load_private_key(CONTROLLER_KEY))


# --- bootstrap tokens -----------------------------------------------------------------------------------------------

#: Cases in which our rules are stricter than those of the reference, and our error codes.
STRICTER = {
    "sig_padded_lenient": "invalid_signature",  # base64 is strict
    "sig_std_base64_lenient": "invalid_signature",
    "payload_padded": "invalid_token_format",  # the reference decodes it, and then the signature fails
    "ttl_over_24h_accepted": "invalid_token_format",  # the lifetime is at most 24 hours
    "iat_negative": "invalid_token_format",
    "exp_float": "invalid_token_format",
    "exp_before_iat": "invalid_token_format",  # the lifetime is at least one second
    "pub_missing": "invalid_token_format",  # the target needs it to verify the token
    "jti_missing": "invalid_token_format",  # a token without number cannot be burnt
    "pub_other_key": "invalid_signature",  # pub must be the signing key, and iss its device ID
    "iss_mismatch": "invalid_signature",
    "uncompressed_controller_key": "invalid_signature",  # keys are compressed
    "header_not_json": "invalid_token_format",  # the reference raises an internal exception
    "payload_not_json": "invalid_token_format",
    "header_null": "invalid_token_format",
    "payload_null": "invalid_token_format",
}


@pytest.mark.parametrize("case", cases("bootstrap"))
def test_bootstrap_token(case: dict[str, Any]) -> None:
    key = base64.b64decode(case["controller_public_b64"])
    code = STRICTER.get(case["tag"], case["cli"].get("error"))
    if code is not None:
        with pytest.raises(TokenError) as caught:
            bootstrap.verify_token(case["token"], now=case["now"] + 0.5, controller_key=key)
        assert caught.value.code == code
        return
    payload = case["cli"]["payload"]
    for controller_key in (None, key):
        token = bootstrap.verify_token(case["token"], now=case["now"] + 0.5, controller_key=controller_key)
        assert (token.issuer, token.issued_at, token.expires_at) == (payload["iss"], payload["iat"], payload["exp"])
        assert (token.jti, token.name, token.relay) == (payload["jti"], payload["name"], payload["relay"])
        assert token.key is None  # tokens of the reference have none
        assert token.public_key == CONTROLLER_PUBLIC


def test_each_stricter_rule_meets_a_vector() -> None:
    tags = {p.values[0]["tag"]: p.values[0] for p in cases("bootstrap")}
    assert tags.keys() >= STRICTER.keys()
    assert all(tags[tag]["cli"].get("error") != code for tag, code in STRICTER.items())


NOW = 1_900_000_000


def sign(message: bytes) -> bytes:
    return keys.sign(CONTROLLER_KEY, message)


def token(**changes: Any) -> str:
    members: dict[str, Any] = {
        "public_key": CONTROLLER_PUBLIC,
        "name": "laptop 🧪",
        "relay": "wss://relay.example/ws",
        "issued_at": NOW,
        "lifetime": 3600,
        "sign": sign,
    }
    return bootstrap.build_token(**{**members, **changes})


def resigned(**changes: Any) -> str:
    """Return a token whose payload was changed by the controller itself."""
    parts = bootstrap.decode_token(token())
    payload = {**parts.payload, **changes}
    signed = f"{parts.signed.split('.')[0]}.{b64url_encode(json.dumps(payload).encode())}"
    return f"{bootstrap.PREFIX}{signed}.{b64url_encode(sign(signed.encode()))}"


def test_our_own_tokens() -> None:
    text = token(key=b"k" * 32)
    parts = bootstrap.decode_token(text)
    assert parts.header == {"typ": "amesh-bootstrap", "ver": "1", "alg": "ES256"}
    assert list(parts.payload) == [
        "iss",
        "pub",
        "iat",
        "exp",
        "jti",
        "name",
        "relay",
        "scope",
        "single_use",
        "key",
    ]
    found = bootstrap.verify_token(text, now=NOW, controller_key=CONTROLLER_PUBLIC)
    assert found.key == b"k" * 32
    assert found.name == "laptop 🧪"
    assert "kkkk" not in repr(found)
    first, second = (bootstrap.verify_token(token(), now=NOW) for _ in range(2))
    assert first.jti != second.jti and first.key != second.key


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": "short"}, "invalid_token_format"),
        ({"key": None}, "invalid_token_format"),
        ({"key": b64url_encode(b"x" * 31)}, "invalid_token_format"),
        ({"jti": "bt_" + "A" * 32}, "invalid_token_format"),
        ({"jti": "x" * 200}, "invalid_token_format"),
        ({"relay": "https://relay.example/ws"}, "invalid_token_format"),
        ({"relay": "wss://user:password@relay.example/ws"}, "invalid_token_format"),
        ({"relay": "wss:///ws"}, "invalid_token_format"),
        ({"relay": "wss://relay.example:99999/ws"}, "invalid_token_format"),
        ({"relay": "wss://relay.example/ws\n"}, "invalid_token_format"),
        ({"name": 5}, "invalid_token_format"),
        ({"pub": "AAAA"}, "invalid_token_format"),
        ({"exp": NOW + 86_401}, "invalid_token_format"),
        ({"exp": float("inf")}, "invalid_token_format"),
        ({"exp": NOW + 100.5}, "invalid_token_format"),
        ({"iat": float("nan")}, "invalid_token_format"),
        ({"exp": True}, "token_expired"),
        ({"iat": True}, "token_not_yet_valid"),
        ({"iat": 10**400}, "token_not_yet_valid"),
        ({"iss": "am_AAAAAAAAAAAAAAAA"}, "invalid_signature"),
    ],
)
def test_tokens_that_a_controller_must_not_sign(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(TokenError) as caught:
        bootstrap.verify_token(resigned(**changes), now=NOW)
    assert caught.value.code == code
    assert bootstrap.verify_token(resigned(exp=NOW + 86_400), now=NOW)


@pytest.mark.parametrize("changes", [{"lifetime": 0}, {"lifetime": 86_401}, {"relay": "relay.example"}, {"relay": ""}])
def test_a_token_that_would_be_rejected_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        token(**changes)


TARGET_KEY = bytes(31) + b"\x04"
TARGET_PUBLIC = keys.public_key_bytes(keys.load_private_key(TARGET_KEY))


def test_a_target_proves_that_it_holds_the_token() -> None:
    held = bootstrap.verify_token(token(), now=NOW)
    assert held.key is not None
    public = b64encode(TARGET_PUBLIC)
    text = f"amesh-bootstrap-init-v2\n{public}\n{held.jti}".encode()
    members = {
        "jti": held.jti,
        "target_public_key": public,
        "proof": bootstrap.init_proof(held.key, TARGET_PUBLIC, held.jti),
        "target_signature": b64encode(keys.sign(TARGET_KEY, text)),
    }
    assert public != b64url_encode(TARGET_PUBLIC)
    assert members["proof"] == base64.b64encode(hmac.digest(held.key, text, "sha256")).decode()
    assert bootstrap.verify_init(key=held.key, **members) == TARGET_PUBLIC
    other = b64encode(CONTROLLER_PUBLIC)
    for changes in (
        {"target_public_key": other},  # the device that a relay wants to enroll
        {"target_public_key": other, "proof": bootstrap.init_proof(b"?" * 32, CONTROLLER_PUBLIC, held.jti)},
        {"target_public_key": b64url_encode(TARGET_PUBLIC)},  # the same key, but another text than the proven one
        {"proof": ""},
        {"proof": b64encode(b"?" * 32)},
        {"proof": "\ud800"},
        {"target_signature": ""},
        {"target_signature": b64encode(sign(text))},
        {"jti": "bt_" + "0" * 32},
    ):
        with pytest.raises(InvalidInit):
            bootstrap.verify_init(key=held.key, **{**members, **changes})


def test_only_the_controller_of_the_token_acknowledges() -> None:
    held = bootstrap.verify_token(token(), now=NOW)
    text = f"amesh-bootstrap-ack-v1\n{b64encode(TARGET_PUBLIC)}\n{held.jti}".encode()
    assert bootstrap.acknowledgement_message(TARGET_PUBLIC, held.jti) == text
    members: dict[str, Any] = {
        "target_public_key": TARGET_PUBLIC,
        "controller_public_key": b64encode(CONTROLLER_PUBLIC),
        "controller_signature": b64encode(sign(text)),
    }
    bootstrap.verify_acknowledgement(held, **members)
    for changes in (
        {
            "controller_public_key": b64encode(TARGET_PUBLIC),
            "controller_signature": b64encode(keys.sign(TARGET_KEY, text)),
        },
        {"controller_public_key": b64encode(TARGET_PUBLIC)},  # the signature is valid, but the relay sends another key
        {"controller_signature": b64encode(keys.sign(TARGET_KEY, text))},
        {"controller_signature": ""},
        {"controller_public_key": "?"},
        {"target_public_key": CONTROLLER_PUBLIC},
    ):
        with pytest.raises(InvalidAcknowledgement):
            bootstrap.verify_acknowledgement(held, **{**members, **changes})
