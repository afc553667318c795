"""The pure functions of pairing and bootstrap tokens, against the cases of the reference; version 2, against its specification."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from authmesh.pairing.ceremony.controller import controller_v2
from authmesh.pairing.ceremony.machine import Ceremony, Decide, Ephemeral, Party, Receive, Send
from authmesh.pairing.ceremony.target import target_v2
from authmesh.protocol import keys
from authmesh.protocol.encoding import b64encode, b64url_decode
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.pairing import codes as pairing
from authmesh.protocol.pairing import v1 as pairing_v1
from authmesh.protocol.pairing import v2 as pairing_v2
from authmesh.protocol.pairing.errors import InvalidCode, InvalidPayload
from tests.protocol.test_protocol_vectors import VECTORS, cases

pytestmark = pytest.mark.unversioned

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
    if case["tag"] == "peer_uncompressed":  # version 1 accepts it, as the reference does, and compresses it
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
    # For the reference, two empty codes are equal. That verifies nothing, so our answer is no.
    expected = case["expected"] and case["entered"] != ""
    assert pairing.verify_sas(case["entered"], case["computed"]) is expected


@pytest.mark.parametrize("entered", ["", "12345", "1234567", "abcdef", "12345\n", "١٢٣٤٥٦", "\ud800" * 6])
def test_only_six_ascii_digits_verify(entered: str) -> None:
    assert pairing.verify_sas(entered, entered) is False


@pytest.mark.parametrize("case", cases("selfsig"))
def test_self_signature(case: dict[str, Any]) -> None:
    # Like the reference, version 1 accepts signatures and keys in base64url, and white space in a signature: the signature covers the
    # text, and the key is the same.
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


def test_the_reference_can_read_our_identity() -> None:
    private = keys.generate_private_key()
    public = keys.public_key_bytes(keys.load_private_key(private))
    moment = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
    text = pairing_v1.build_identity(public, "Ünïcödé 🧪", moment, lambda message: keys.sign(private, message))
    assert list(json.loads(text)) == ["publicKey", "friendlyName", "timestamp", "selfSig"]
    assert json.loads(text)["timestamp"] == "2026-03-28T10:05:00.000Z"
    assert pairing_v1.parse_identity(text) == pairing.Peer(public, "Ünïcödé 🧪")


def test_a_lone_surrogate_is_signed_as_in_javascript() -> None:
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
def test_a_malformed_code_is_rejected_before_it_is_sent(typed: str) -> None:
    with pytest.raises(InvalidCode):
        pairing.parse_code(typed)


# --- version 2, computed anew from protocol.md §6b ------------------------------------------------------------------


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def test_version_2_follows_its_specification() -> None:
    """Run a whole ceremony, and check each payload with a computation that shares no code with it."""
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
