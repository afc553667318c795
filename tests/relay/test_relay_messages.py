"""Parsing of messages, and the addresses of clients."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amesh_django.relay.addresses import Tally, client_address, wide_network
from amesh_django.relay.hub import messages
from amesh_django.relay.hub.messages import InvalidMessage, Message, parse
from tests.relay.relay_world import JTI

pytestmark = pytest.mark.unversioned


def refusal(text: str) -> str:
    with pytest.raises(InvalidMessage) as caught:
        parse(text)
    return caught.value.code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "true",
        "7",
        '"listen"',
        "[]",
        '[{"type":"listen"}]',
        "{",
        '{"type":"listen","otc":"482916"} x',
        "\ufeff{}",
        '{"type":"done","x":NaN}',
        '{"type":"done","x":-Infinity}',
        "[" * 60_000,
        '{"a":' * 10_000,
        '{"type":"done","x":' + "[" * 30_000 + "]" * 30_000 + "}",
        '{"type":"done","x":' + "9" * 60_000 + "}",
        '{"type":"data"}',
        '{"type":"data","payload":null}',
        '{"type":"data","payload":{"a":1}}',
        '{"type":"data","payload":7}',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_message(text: str) -> None:
    assert refusal(text) == "invalid_message"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"type":null}',
        '{"type":["listen"]}',
        '{"type":{"listen":1}}',
        '{"type":"LISTEN"}',
        '{"type":"agent","deviceId":"am_x","publicKey":"y"}',
        '{"type":"agent_challenge_response","sig":"x"}',
        '{"type":"shell","targetDeviceId":"x","targetPublicKey":"y"}',
        '{"type":"ping"}',
        '{"type":"peer_found"}',
        '{"type":"error","code":"rate_limited"}',
        '{"type":"listen","otc":"482916","type":"x"}',
    ],
)
def test_unknown_types(text: str) -> None:
    assert refusal(text) == "unknown_type"


@pytest.mark.parametrize("kind", ["listen", "connect"])
@pytest.mark.parametrize(
    "otc",
    [
        None,
        482916,
        "",
        "48291",
        "4829160",
        "48291a",
        "\uff14\uff18\uff12\uff19\uff11\uff16",
        " 482916",
        "482916\n",
        ["482916"],
    ],
)
def test_no_code(kind: str, otc: object) -> None:
    assert refusal(json.dumps({"type": kind, "otc": otc})) == "invalid_otc"


@pytest.mark.parametrize("kind", ["bootstrap_watch", "bootstrap_init", "bootstrap_ack", "bootstrap_reject"])
def test_no_token(kind: str) -> None:
    assert refusal(json.dumps({"type": kind})) == "missing_jti"
    assert refusal(json.dumps({"type": kind, "jti": ""})) == "missing_jti"
    assert refusal(json.dumps({"type": kind, "jti": None})) == "missing_jti"
    for jti in ("x" * 129, 7, ["x"], {}, "\ud800"):
        assert refusal(json.dumps({"type": kind, "jti": jti})) == "invalid_jti"


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"targetPubKey": "k"},
        {"token": "t"},
        {"targetPubKey": 7, "token": "t"},
        {"targetPubKey": "k", "token": None},
        {"targetPubKey": "k", "proof": ["p"]},
        {"targetPubKey": "k", "proof": "p", "targetSig": 1},
    ],
)
def test_an_init_that_says_too_little_burns_nothing(members: dict[str, Any]) -> None:
    assert refusal(json.dumps({"type": "bootstrap_init", "jti": JTI, **members})) == "invalid_message"


def test_what_is_forwarded() -> None:
    def forwarded(**message: Any) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(parse(json.dumps(message)).frame)
        return result

    assert forwarded(type="data", payload="a\u2028€\x00", other=1) == {"type": "data", "payload": "a\u2028€\x00"}
    v1 = {"type": "bootstrap_init", "jti": JTI, "token": "t", "targetPubKey": "k"}
    assert forwarded(**v1, publicKey="x", iss="y") == v1
    v2 = {"type": "bootstrap_init", "jti": JTI, "targetPubKey": "k", "proof": "p", "targetSig": "s"}
    assert forwarded(**v2, junk=[1]) == v2
    ack = {"type": "bootstrap_ack", "jti": JTI, "publicKey": "k", "controllerSig": "s", "controllerPubKey": "fake"}
    assert forwarded(**ack) == {"type": "bootstrap_ack", "jti": JTI, "controllerPubKey": "k", "controllerSig": "s"}
    assert forwarded(type="bootstrap_ack", jti=JTI, publicKey="k")["controllerPubKey"] == "k"
    reject = {"type": "bootstrap_reject", "jti": JTI, "error": "token_expired"}
    assert forwarded(**reject, more="x") == reject


@given(st.text(alphabet=st.characters(), max_size=200))
def test_a_payload_arrives_as_it_was_and_no_longer(payload: str) -> None:
    text = json.dumps({"type": "data", "payload": payload}, separators=(",", ":"), ensure_ascii=payload.isascii())
    if any("\ud800" <= character <= "\udfff" for character in payload):  # no text frame can hold them but escaped
        text = json.dumps({"type": "data", "payload": payload}, separators=(",", ":"))
    frame = parse(text).frame
    assert json.loads(frame) == {"type": "data", "payload": payload}
    assert len(frame.encode()) <= len(text.encode())


def test_what_is_logged_of_a_message_tells_nothing() -> None:
    assert repr(Message("listen", "482916", "secret")) == "Message(listen)"


def test_length() -> None:
    assert messages.length("abc") == 3
    assert messages.length("€") == 3
    assert sys.getsizeof("x") > messages.length("x")


# --- who a client is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "forwarded", "proxies", "expected"),
    [
        ("203.0.113.9", [], 0, "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], 0, "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], 1, "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], 1, "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1, 10.0.0.2"], 2, "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1", "10.0.0.2"], 2, "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1"], 2, "198.51.100.1"),
        ("10.0.0.1", [], 2, "10.0.0.1"),
        ("10.0.0.1", [" , "], 1, "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], 1, "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:443"], 1, "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3::4]:443"], 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", [], 0, "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1%eth0", [], 0, "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", [], 0, "203.0.113.9"),
        ("::1", [], 0, "::/64"),
        ("", [], 0, "local"),
    ],
)
def test_addresses(client: str, forwarded: list[str], proxies: int, expected: str) -> None:
    scope = {"client": (client, 1), "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded]}
    assert client_address(scope, proxies) == expected


def test_a_client_without_an_address() -> None:
    assert client_address({"client": None, "headers": []}, 0) == "local"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("2001:db8:1:ffff::/64", "2001:db8:1::/48"),
        ("::/64", "::/48"),
        ("203.0.113.9", "203.0.113.9"),
        ("local", "local"),
    ],
)
def test_the_network_around_an_address(address: str, expected: str) -> None:
    assert wide_network(address) == expected


def test_connections_of_an_address_and_of_a_network() -> None:
    tally = Tally(2, 2)
    addresses = ["2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:1:3::/64"]
    for address in addresses[:2]:
        for _ in range(2):
            assert not tally.is_full(address)
            tally.add(address)
        assert tally.is_full(address)
    assert tally.is_full(addresses[2])
    assert not tally.is_full("2001:db8:2:3::/64")
    tally.remove(addresses[0])
    assert not tally.is_full(addresses[2])
    assert tally.is_full(addresses[1])
    for address in (addresses[0], *addresses[1:2] * 2):
        tally.remove(address)
    assert len(tally) == 0
    unlimited = Tally(0, 8)
    unlimited.add("192.0.2.1")
    assert not unlimited.is_full("192.0.2.1")
