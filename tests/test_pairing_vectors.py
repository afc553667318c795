"""The pure functions of pairing and bootstrap against the cases that the reference produced, and version 2 against its page."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
from collections import Counter
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from amesh_django.pairing.ceremony import Ceremony, Decide, Ephemeral, Party, Receive, Send
from amesh_django.pairing.controller import controller_v2
from amesh_django.pairing.target import target_v2
from amesh_django.protocol import bootstrap, keys, pairing, pairing_v1, pairing_v2
from amesh_django.protocol.encoding import b64encode, b64url_decode, b64url_encode
from amesh_django.protocol.errors import InvalidInput
from amesh_django.protocol.pairing_errors import (
    InvalidAcknowledgement,
    InvalidCode,
    InvalidInit,
    InvalidPayload,
    PairingError,
    TokenError,
)
from tests.test_protocol_vectors import VECTORS, cases

CONTROLLER_KEY = bytes.fromhex(json.loads((VECTORS / "bootstrap.json").read_text())["controller_private_key_hex"])
CONTROLLER_PUBLIC = keys.public_key_bytes(keys.load_private_key(CONTROLLER_KEY))


# --- version 1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("ecdh"))
def test_key_agreement(case: dict[str, Any]) -> None:
    mine = bytes.fromhex(case["private_a_hex"])
    theirs = case.get("public_b_b64", case.get("peer_public_b64"))
    if case.get("error"):
        with pytest.raises(InvalidPayload):
            pairing_v1.decode_ephemeral(theirs)
        with pytest.raises(InvalidInput):
            pairing.shared_secret(mine, base64.b64decode(theirs))
        return
    point = pairing_v1.decode_ephemeral(theirs)
    shared = pairing.shared_secret(mine, point)
    assert shared.hex() == case["shared_secret_hex"]
    if case["tag"] == "peer_uncompressed":  # taken at version 1's door, as the reference does; compressed from there on
        assert len(point) == 33
        with pytest.raises(InvalidInput):
            pairing.shared_secret(mine, base64.b64decode(theirs))
        return
    assert pairing_v1.session_key(shared).hex() == case["session_key_hex"]
    other = pairing.shared_secret(
        bytes.fromhex(case["private_b_hex"]), pairing_v1.decode_ephemeral(case["public_a_b64"])
    )
    assert other == shared


@pytest.mark.parametrize("case", cases("tunnel"))
def test_tunnel(case: dict[str, Any]) -> None:
    key = bytes.fromhex(case["key_hex"])
    if case.get("error"):
        with pytest.raises(InvalidPayload):
            pairing_v1.decrypt(key, case["payload_b64"])
        return
    plaintext = bytes.fromhex(case["plaintext_hex"])
    assert pairing_v1.decrypt(key, case["payload_b64"]) == plaintext
    nonce = base64.b64decode(case["payload_b64"])[:12]
    assert pairing_v1.encrypt(key, plaintext, nonce=nonce) == case["payload_b64"]
    assert pairing_v1.encrypt(key, plaintext) != pairing_v1.encrypt(key, plaintext)


@pytest.mark.parametrize("case", cases("sas"))
def test_verification_code(case: dict[str, Any]) -> None:
    target, controller = base64.b64decode(case["target_public_b64"]), base64.b64decode(case["controller_public_b64"])
    assert pairing_v1.sas(target, controller, bytes.fromhex(case["shared_secret_hex"])) == case["sas"]


@pytest.mark.parametrize("case", json.loads((VECTORS / "sas.json").read_text())["verify_sas"])
def test_verify_sas(case: dict[str, Any]) -> None:
    # The reference takes two empty codes for equal. Nothing was verified then, so here that is no.
    expected = case["expected"] and case["entered"] != ""
    assert pairing.verify_sas(case["entered"], case["computed"]) is expected


@pytest.mark.parametrize("entered", ["", "12345", "1234567", "abcdef", "12345\n", "١٢٣٤٥٦", "\ud800" * 6])
def test_what_is_not_six_ascii_digits_never_verifies(entered: str) -> None:
    assert pairing.verify_sas(entered, entered) is False


@pytest.mark.parametrize("case", cases("selfsig"))
def test_self_signature(case: dict[str, Any]) -> None:
    # Signatures and keys in base64url, and white space in a signature, are taken as the reference takes them: what is signed is
    # the text, and what counts is the key.
    peer = case["peer"]
    members = (peer["publicKey"], peer["friendlyName"], peer["timestamp"])
    assert pairing_v1.self_signature_message(*members).hex() == case["message_hex"]
    assert pairing_v1.verify_self_signature(*members, peer["selfSig"]) is case["expected"]
    if case["expected"]:
        found = pairing_v1.parse_identity(json.dumps(peer).encode())
        assert found.public_key == keys.decode_public_key(peer["publicKey"])
    else:
        with pytest.raises(InvalidPayload):
            pairing_v1.parse_identity(json.dumps(peer).encode())
    if case.get("deterministic"):
        signature = keys.sign(bytes.fromhex(case["private_key_hex"]), bytes.fromhex(case["message_hex"]))
        assert b64encode(signature) == peer["selfSig"]


def test_an_identity_of_ours_is_what_the_reference_reads() -> None:
    private = keys.generate_private_key()
    public = keys.public_key_bytes(keys.load_private_key(private))
    moment = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
    text = pairing_v1.build_identity(public, "Ünïcödé 🧪", moment, lambda message: keys.sign(private, message))
    assert list(json.loads(text)) == ["publicKey", "friendlyName", "timestamp", "selfSig"]
    assert json.loads(text)["timestamp"] == "2026-03-28T10:05:00.000Z"
    assert pairing_v1.parse_identity(text) == pairing.Peer(public, "Ünïcödé 🧪")


def test_a_lone_surrogate_is_signed_as_javascript_would() -> None:
    assert pairing_v1.self_signature_message("k", "a\ud800b", "t") == "ka\ufffdbt".encode()


def test_the_name_of_a_peer_is_clean() -> None:
    assert pairing.Peer.claiming(CONTROLLER_PUBLIC, "\x1b[2Jevil\nname\u202e" + "x" * 500).name.startswith("evil name")
    assert pairing.Peer.claiming(CONTROLLER_PUBLIC, "\x07").name == "(no name)"


# --- one-time codes -------------------------------------------------------------------------------------------------


def test_one_time_codes_are_uniform() -> None:
    codes = [pairing.generate_code() for _ in range(9000)]
    assert all(len(code) == 6 and 100_000 <= int(code) <= 999_999 for code in codes)
    firsts = Counter(code[0] for code in codes)  # nine first digits, 1000 each: ten standard deviations are 300
    assert set(firsts) == set("123456789")
    assert all(700 < count < 1300 for count in firsts.values())


@pytest.mark.parametrize(("typed", "code"), [("482916", "482916"), (" 482 916\n", "482916"), ("482-916", "482916")])
def test_a_code_may_be_typed_in_groups(typed: str, code: str) -> None:
    assert pairing.parse_code(typed) == code


@pytest.mark.parametrize("typed", ["", "12345", "099999", "1234567", "١٢٣٤٥٦", "48291a", "+82916", "482.916"])
def test_what_is_no_code_is_refused_before_it_is_sent(typed: str) -> None:
    with pytest.raises(InvalidCode):
        pairing.parse_code(typed)


# --- version 2, computed anew from protocol.md §6b ------------------------------------------------------------------


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def test_version_2_says_what_its_page_says() -> None:
    """A whole ceremony of ours, each payload checked against a computation that shares no code with it."""
    target_key, controller_key = keys.generate_private_key(), keys.generate_private_key()
    moment = dt.datetime(2026, 3, 28, 10, 5, 0, 123_000, tzinfo=dt.UTC)

    def party(private: bytes, name: str) -> Party:
        public = keys.public_key_bytes(keys.load_private_key(private))
        return Party(public, name, lambda message: keys.sign(private, message), lambda: moment)

    t, c = party(target_key, "server"), party(controller_key, "laptop 🧪")
    e_t, e_c = Ephemeral.of(bytes(31) + b"\x05"), Ephemeral.of(bytes(31) + b"\x07")
    n_t, n_c = b"t" * 32, b"c" * 32
    target = Ceremony(target_v2(t, ephemeral=e_t, nonce=n_t))
    controller = Ceremony(controller_v2(c, ephemeral=e_c, nonce=n_c))
    sent: list[tuple[str, bytes]] = []

    def carry(name: str, one: Ceremony, other: Ceremony) -> None:
        assert isinstance(one.action, Send) and isinstance(other.action, Receive)
        payload = one.action.payload
        assert payload.startswith("v2.")
        sent.append((name, b64url_decode(payload[3:])))
        one.answer()
        other.answer(payload)

    shared = ec.derive_private_key(5, ec.SECP256R1()).exchange(
        ec.ECDH(), ec.derive_private_key(7, ec.SECP256R1()).public_key()
    )
    h = hashlib.sha256(b"amesh-pair-v2\n" + e_t.public + n_t + e_c.public + n_c).digest()
    both = _hkdf(shared, h, b"amesh-pair-v2/keys", 64)
    sas = f"{int.from_bytes(hashlib.sha256(b'amesh-pair-v2/sas' + bytes([10]) + h).digest()[:8], 'big') % 10**6:06d}"
    assert pairing_v2.sas(h) == sas

    carry("T", target, controller)
    carry("C", controller, target)
    carry("T", target, controller)
    carry("C", controller, target)
    carry("T", target, controller)
    controller.answer()  # the code was shown
    target.answer(sas)
    assert isinstance(target.action, Decide)
    target.answer(True)
    carry("T", target, controller)
    controller.answer(True)  # confirmed
    controller.answer(True)  # stored
    carry("C", controller, target)
    target.answer(True)  # stored
    carry("T", target, controller)

    assert sent[0] == ("T", hashlib.sha256(b"amesh-pair-v2/commit\n" + e_t.public + n_t).digest())
    assert sent[1] == ("C", e_c.public + n_c)
    assert sent[2] == ("T", e_t.public + n_t)
    plain = [
        ChaCha20Poly1305(key).decrypt(number.to_bytes(12, "big"), sent[index][1], h)
        for key, number, index in (
            (both[:32], 0, 3),
            (both[32:], 0, 4),
            (both[32:], 1, 5),
            (both[:32], 1, 6),
            (both[32:], 2, 7),
        )
    ]
    assert [json.loads(text) for text in plain[2:]] == [
        {"verdict": "confirmed"},
        {"verdict": "confirmed"},
        {"verdict": "stored"},
    ]
    for text, role, private, name in (
        (plain[0], "controller", controller_key, "laptop 🧪"),
        (plain[1], "target", target_key, "server"),
    ):
        public = base64.b64encode(keys.public_key_bytes(keys.load_private_key(private))).decode()
        message = f"amesh-pair-v2/identity\n{role}\n{public}\n2026-03-28T10:05:00.123Z\n".encode()
        message += hashlib.sha256(name.encode()).digest() + h
        assert json.loads(text) == {
            "role": role,
            "publicKey": public,
            "friendlyName": name,
            "timestamp": "2026-03-28T10:05:00.123Z",
            "selfSig": base64.b64encode(keys.sign(private, message)).decode(),
        }


# --- bootstrap tokens -----------------------------------------------------------------------------------------------

#: Where ours is stricter than the reference, and the code it answers with.
STRICTER = {
    "sig_padded_lenient": "invalid_signature",  # base64 is strict
    "sig_std_base64_lenient": "invalid_signature",
    "payload_padded": "invalid_token_format",  # the reference decodes it, and then the signature fails
    "ttl_over_24h_accepted": "invalid_token_format",  # a token lives 24 hours at most
    "iat_negative": "invalid_token_format",
    "exp_float": "invalid_token_format",
    "exp_before_iat": "invalid_token_format",  # and a second at least
    "pub_missing": "invalid_token_format",  # the target verifies with it
    "jti_missing": "invalid_token_format",  # nothing to burn
    "pub_other_key": "invalid_signature",  # pub must be the key that signed, and iss its device id
    "iss_mismatch": "invalid_signature",
    "uncompressed_controller_key": "invalid_signature",  # keys are compressed
    "header_not_json": "invalid_token_format",  # the reference lets its own exceptions out
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
        assert token.key is None  # the reference has none
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
    """A token whose payload was changed by the controller itself."""
    parts = bootstrap.decode_token(token())
    payload = {**parts.payload, **changes}
    signed = f"{parts.signed.split('.')[0]}.{b64url_encode(json.dumps(payload).encode())}"
    return f"{bootstrap.PREFIX}{signed}.{b64url_encode(sign(signed.encode()))}"


def test_a_token_of_ours() -> None:
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
def test_what_a_controller_must_not_sign(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(TokenError) as caught:
        bootstrap.verify_token(resigned(**changes), now=NOW)
    assert caught.value.code == code
    assert bootstrap.verify_token(resigned(exp=NOW + 86_400), now=NOW)


@pytest.mark.parametrize("changes", [{"lifetime": 0}, {"lifetime": 86_401}, {"relay": "relay.example"}, {"relay": ""}])
def test_a_token_that_would_be_refused_is_not_made(changes: dict[str, Any]) -> None:
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
        {"target_public_key": other},  # what a relay would like to enrol
        {"target_public_key": other, "proof": bootstrap.init_proof(b"?" * 32, CONTROLLER_PUBLIC, held.jti)},
        {"target_public_key": b64url_encode(TARGET_PUBLIC)},  # the same key, but not the text that was proven
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
        {"controller_public_key": b64encode(TARGET_PUBLIC)},  # the signature holds, but the relay names another key
        {"controller_signature": b64encode(keys.sign(TARGET_KEY, text))},
        {"controller_signature": ""},
        {"controller_public_key": "?"},
        {"target_public_key": CONTROLLER_PUBLIC},
    ):
        with pytest.raises(InvalidAcknowledgement):
            bootstrap.verify_acknowledgement(held, **{**members, **changes})


# --- sentences ------------------------------------------------------------------------------------------------------


def every_error(kind: type[PairingError] = PairingError) -> list[type[PairingError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in every_error(below))]


def test_every_error_has_a_code_and_a_sentence_of_its_own() -> None:
    found = every_error()
    assert len({kind.code for kind in found}) == len(found)
    sentences = {str(kind()) for kind in found}
    assert len(sentences) == len(found)
    assert all("\n" not in text and "  " not in text and text.endswith(".") for text in sentences)
