"""The messages between a hub and its servers as pure functions: what is made is read, and whatever is changed is rejected."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.fleet.errors import MalformedFeed, UnverifiedMessage
from authmesh.protocol.fleet.events import FeedEvent, Trusted, key_hash
from authmesh.protocol.fleet.feed import Acknowledgement, FeedMessage, Refused, ack_message, pull_message

HUB, SERVER, MACHINE = EphemeralDevice("hub"), EphemeralDevice("server"), EphemeralDevice("machine")
NOW = dt.datetime(2026, 11, 28, 12, 0, tzinfo=dt.UTC)
KEY = MACHINE.identity.public_key
NONCE = b64url_encode(b"n" * 16)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def event(serial: int = 42, **changes: Any) -> FeedEvent:
    members = {
        "serial": serial,
        "event": "revoke",
        "device_id": MACHINE.identity.device_id,
        "key": key_hash(KEY),
        "at": NOW,
        "reason": "lost",
    }
    return FeedEvent(**{**members, **changes})


EVENTS = [
    event(),
    event(event="suspend", until=NOW + dt.timedelta(hours=1)),
    event(event="lift"),
    event(event="reinstate", reason=""),
    event(event="lift", trusted=Trusted(KEY, "m-1")),
    event(reason="rotated", effective_at=NOW + dt.timedelta(minutes=10), successor="am_0123456789abcdef"),
    event(event="trust", trusted=Trusted(KEY, "m-1", {"rate": "5/s"}, ("orders:read",), NOW)),
]


def message(*events: FeedEvent, **changes: Any) -> FeedMessage:
    members = {
        "issuer": HUB.identity.device_id,
        "audience": SERVER.identity.device_id,
        "url": "https://hub.example/amesh/",
        "epoch": "e" * 32,
        "after": 41,
        "head": 44,
        "issued_at": 1_764_316_800,
        "events": events,
        "until": 44,
    }
    return FeedMessage(**{**members, **changes})


def wire(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("sent", EVENTS, ids=lambda found: found.event)
def test_an_event_is_read_as_it_was_written(sent: FeedEvent) -> None:
    assert FeedEvent.from_json(wire(sent.to_json())) == sent


def test_a_message_is_read_as_it_was_written() -> None:
    for sent in (
        message(),
        message(event(42), event(43), event(43), event(44)),
        message(revocations="eyJ.x.y", after=0),
    ):
        assert FeedMessage.from_json(wire(sent.to_json())) == sent


def test_a_hub_that_does_not_say_how_far_a_message_goes() -> None:
    """Then it goes as far as its last event; a message without events as far as the newest serial."""
    for events, until in (([event(42), event(43)], 43), ([], 44)):
        value = message(*events).to_json()
        del value["until"]
        assert FeedMessage.from_json(value).until == until


def test_a_hub_that_is_behind_its_server_is_read() -> None:
    assert FeedMessage.from_json(message(head=30, until=30).to_json()).head == 30


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"events": {}},
        {"events": [event(41).to_json()]},  # not after 41
        {"events": [event(45).to_json()]},  # after the newest
        {"events": [event(43).to_json(), event(42).to_json()]},
        {"events": [event(44).to_json()], "until": 43},
        {"events": [{**event().to_json(), "event": "purge"}]},
        {"events": [{**event().to_json(), "key": b64url_encode(b"short")}]},
        {"events": [{**event().to_json(), "device": ""}]},
        {"events": [{**event().to_json(), "at": "yesterday"}]},
        {"events": [{**EVENTS[-1].to_json(), "publicKey": HUB.identity.public_key.hex()}]},
        {"events": [{**EVENTS[-1].to_json(), "key": b64url_encode(key_hash(HUB.identity.public_key))}]},
        {"until": 45},
        {"until": 40},
        {"head": 1 << 53},
        {"head": 44.0},
        {"head": -1},
        {"iss": ""},
        {"aud": None},
        {"epoch": ""},
        {"epoch": "e" * 33},
        {"url": "u" * 501},
        {"iat": "now"},
        {"list": 1},
    ],
)
def test_what_is_not_a_message_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedFeed):
        FeedMessage.from_json({**message().to_json(), **changes})


@given(st.sampled_from(sorted(EVENTS[-1].to_json())), JSON)
def test_any_member_is_at_worst_malformed(name: str, value: Any) -> None:
    for read in (
        lambda: FeedEvent.from_json({**EVENTS[-1].to_json(), name: value}),
        lambda: FeedMessage.from_json({**message().to_json(), name: value}),
        lambda: FeedMessage.from_json(value),
    ):
        try:
            read()
        except AmeshError as error:
            assert isinstance(error, MalformedFeed)


def acknowledge(found: Acknowledgement, **changes: Any) -> dict[str, Any]:
    value = found.to_json(
        issuer=HUB.identity.device_id, audience=SERVER.identity.device_id, nonce=NONCE, sign=SERVER.sign
    )
    return {**wire(value), **changes}


def read(value: Any, **changes: Any) -> Acknowledgement:
    members = {
        "issuer": HUB.identity.device_id,
        "audience": SERVER.identity.device_id,
        "nonce": NONCE,
        "server_key": SERVER.identity.public_key,
    }
    return Acknowledgement.from_json(value, **{**members, **changes})


def test_an_answer_is_read_as_it_was_signed() -> None:
    sent = Acknowledgement("e" * 32, 44, (Refused(43, "am_x", "max_controllers"),), needs_list=True)
    assert read(acknowledge(sent)) == sent


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"applied": 45}, {}),
        ({"epoch": "f" * 32}, {}),
        ({"sig": ""}, {}),
        ({"sig": b64url_encode(HUB.sign(b"x"))}, {}),
        ({}, {"nonce": b64url_encode(b"m" * 16)}),
        ({}, {"issuer": MACHINE.identity.device_id}),
        ({}, {"audience": MACHINE.identity.device_id}),
        ({}, {"server_key": HUB.identity.public_key}),
    ],
)
def test_an_answer_that_the_server_did_not_give_to_this_request(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    with pytest.raises(UnverifiedMessage):
        read(acknowledge(Acknowledgement("e" * 32, 44), **changes), **expected)


@given(JSON)
def test_any_answer_is_at_worst_unverified(value: Any) -> None:
    with pytest.raises(UnverifiedMessage):
        read(value)


def test_what_is_signed_is_what_the_documentation_says() -> None:
    assert ack_message(issuer="a", audience="b", epoch="c", applied=1, nonce="d") == b"amesh-feed-ack-v1\na\nb\nc\n1\nd"
    assert pull_message(issuer="a", audience="b", nonce="c", body_hash="d") == b"amesh-feed-pull-v1\na\nb\nc\nd"
