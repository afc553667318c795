"""Random input: each parser of pairing returns a value or raises one of our errors, and nothing else."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authmesh.pairing.ceremony.controller import controller_v1, controller_v2
from authmesh.pairing.ceremony.machine import AskCode, Ceremony, Confirm, Decide, Receive, Send, ShowCode, Store
from authmesh.pairing.ceremony.target import target_v1, target_v2
from authmesh.pairing.wire import frames
from authmesh.protocol.encoding import b64encode, b64url_encode
from authmesh.protocol.pairing import codes as pairing
from authmesh.protocol.pairing import token as bootstrap
from authmesh.protocol.pairing import v1 as pairing_v1
from authmesh.protocol.pairing import v2 as pairing_v2
from authmesh.protocol.pairing.errors import PairingError, RelayProtocolViolation
from authmesh.protocol.pairing.token_errors import TokenError
from tests.pairing.pairing_world import MOMENT, party

pytestmark = pytest.mark.unversioned

SIDES = (target_v1, target_v2, controller_v1, controller_v2)
ME = party("fuzzed")
POINT = party().public_key
KEY = bytes(32)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def json_with(*members: str) -> st.SearchStrategy[Any]:
    """Generate JSON, mostly objects that have these members with random values."""
    values = json_values | st.sampled_from(
        [
            "target",
            "controller",
            b64encode(POINT),
            "2026-03-28T10:05:00.000Z",
            "confirmed",
            b64encode(bytes(64)),
            "\ud800",
        ]
    )
    return st.dictionaries(st.sampled_from(members) | st.text(max_size=5), values) | json_values


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


identities = json_with("role", "publicKey", "friendlyName", "timestamp", "selfSig").map(as_bytes) | st.binary(
    max_size=200
)
raw = st.binary(max_size=200) | st.builds(lambda tail: POINT + tail, st.binary(max_size=40))
payloads = (
    st.text(max_size=100)
    | raw.map(b64encode)
    | raw.map(lambda data: "v2." + b64url_encode(data))
    | raw.map(lambda data: "v2." + b64encode(data))
    | st.text(max_size=100).map("v2.".__add__)
    | st.sampled_from(["sas_confirmed", "sas_rejected", "v2.", "v2", "\ud800", "v2.\ud800"])
)


@given(st.sampled_from(SIDES), st.lists(payloads, max_size=6))
def test_a_ceremony_accepts_any_message(script: Any, incoming: list[str]) -> None:
    ceremony = Ceremony(script(ME))
    try:
        while ceremony.action is not None:
            match ceremony.action:
                case Receive():
                    ceremony.answer(incoming.pop(0) if incoming else "")
                case Send() | ShowCode():
                    ceremony.answer()
                case AskCode():
                    ceremony.answer("000000")
                case Decide() | Confirm():
                    ceremony.answer(True)
                case Store():
                    raise AssertionError("nothing that was made up is ever stored")
    except PairingError:
        pass
    assert ceremony.peer is None


@given(identities)
def test_identities_of_version_1(text: bytes) -> None:
    _only_ours(lambda: pairing_v1.parse_identity(text))


@given(identities)
def test_identities_of_version_2(text: bytes) -> None:
    _only_ours(lambda: pairing_v2.parse_identity(text, "target", KEY, MOMENT))


@pytest.mark.slow
@given(json_with("verdict").map(as_bytes) | st.binary(max_size=50))
def test_verdicts(text: bytes) -> None:
    _only_ours(lambda: pairing_v2.parse_verdict(text))


@given(payloads)
def test_payloads(payload: str) -> None:
    _only_ours(lambda: pairing_v1.decode_ephemeral(payload))
    _only_ours(lambda: pairing_v1.decrypt(KEY, payload))
    _only_ours(lambda: pairing_v2.decode_payload(payload))
    _only_ours(lambda: pairing_v2.decode_payload(payload, size=32))
    _only_ours(lambda: pairing_v2.decode_share(payload))
    _only_ours(lambda: pairing_v2.Tunnel(sending=KEY, receiving=KEY, h=KEY).open(payload))
    _only_ours(lambda: pairing.parse_code(payload))
    assert pairing.verify_sas(payload, "123456") is False
    pairing_v1.verify_self_signature(payload, payload, payload, payload)


@given(st.binary(min_size=1, max_size=pairing_v2.MAX_PLAINTEXT_BYTES))
def test_a_sealed_message_can_be_opened(plaintext: bytes) -> None:
    sender, receiver = (pairing_v2.Tunnel(sending=KEY, receiving=KEY, h=KEY) for _ in range(2))
    for _ in range(3):
        assert receiver.open(sender.seal(plaintext)) == plaintext
    assert pairing_v1.decrypt(KEY, pairing_v1.encrypt(KEY, plaintext)) == plaintext


@given(st.text(max_size=300))
def test_any_name_survives_a_pairing_as_it_is_shown(name: str) -> None:
    said = pairing.Peer.claiming(POINT, name).name
    text = pairing_v2.build_identity("target", ME.public_key, said, MOMENT, KEY, ME.sign)
    assert len(text) <= pairing_v2.MAX_PLAINTEXT_BYTES
    assert pairing_v2.parse_identity(text, "target", KEY, MOMENT).name == said
    assert pairing_v1.parse_identity(pairing_v1.build_identity(ME.public_key, name, MOMENT, ME.sign)).name == said


@given(
    json_with("type", "payload", "code", "message", "otc").map(json.dumps)
    | st.text(max_size=100)
    | st.binary(max_size=100)
    | st.sampled_from(["[" * 100_000, '{"type":' * 50_000, "1" * 5000, '{"type":"error","code":"\ud800\\u001b[2J"}'])
)
def test_frames_of_a_relay(text: str | bytes) -> None:
    try:
        frame = frames.parse_frame(text)
    except RelayProtocolViolation:
        return
    if isinstance(frame, frames.Failed):
        assert str(frame.error).isprintable()


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.lists(
        json_with(
            "typ", "ver", "alg", "iss", "pub", "iat", "exp", "jti", "name", "relay", "scope", "single_use", "key"
        ),
        min_size=2,
        max_size=2,
    ),
    st.text(max_size=20),
    st.integers(min_value=0, max_value=9),
)
def test_tokens(values: list[Any], tail: str, cut: int) -> None:
    header, payload = values
    if cut > 2 and isinstance(header, dict) and isinstance(payload, dict):  # so that the later rules are reached, too
        header = {**header, "typ": "amesh-bootstrap", "ver": "1", "alg": "ES256"}
        payload = {"iat": 0, "exp": 10, "jti": "bt_" + "0" * 32, "relay": "wss://r/ws", **payload}
        payload |= {"scope": "peer:add", "single_use": True}
    parts = [base64.urlsafe_b64encode(as_bytes(value)).rstrip(b"=").decode() for value in (header, payload)]
    for text in (f"amesh-bt-v1.{parts[0]}.{parts[1]}.{tail}", f"amesh-bt-v1.{tail}", tail):
        try:
            bootstrap.verify_token(text, now=5)
        except TokenError:
            continue
        raise AssertionError("a token that nobody signed was taken")


@given(payloads, payloads, payloads)
def test_frames_that_use_a_token(key: str, proof: str, signature: str) -> None:
    for members in ((key, proof, signature), (b64encode(POINT), proof, signature)):
        try:
            bootstrap.verify_init(
                key=KEY,
                jti="bt_" + "0" * 32,
                target_public_key=members[0],
                proof=members[1],
                target_signature=members[2],
            )
        except TokenError:
            continue
        raise AssertionError("a proof that nobody made was taken")
    token = bootstrap.BootstrapToken("", ME.public_key, 0, 1, "bt_" + "0" * 32, "", "wss://r/ws", KEY)
    for stated in (key, b64encode(ME.public_key)):
        try:
            bootstrap.verify_acknowledgement(
                token, target_public_key=POINT, controller_public_key=stated, controller_signature=signature
            )
        except TokenError:
            continue
        raise AssertionError("an acknowledgement that nobody signed was taken")


def _only_ours(parse: Any) -> None:
    with contextlib.suppress(PairingError):
        parse()
