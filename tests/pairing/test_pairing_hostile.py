"""Pairing over a relay that sends other frames than it should."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from authmesh.pairing import Paired, Timeouts
from authmesh.protocol.pairing.errors import (
    InvalidPayload,
    InvalidSelfSignature,
    MessageTooBig,
    NotConfirmed,
    PairingDeclined,
    PairingError,
    PeerGone,
    PeerRefused,
    PeerSilent,
    PeerSpeaksV1,
    PeerSpeaksV2,
    RelayClosed,
    RelayProtocolViolation,
    SessionDataLimit,
    WrongVerificationCode,
)
from tests.pairing.hostile_relay import ACK, DONE, FOUND, HostileRelay, data, error
from tests.pairing.middles import AloneWithController, MiddleV2, SpeaksV1ToBoth
from tests.pairing.pairing_people import QUICK, SHORT, Two, is_error, run
from tests.pairing.pairing_world import party

pytestmark = pytest.mark.unversioned

VERSIONS = pytest.mark.parametrize("version", [1, 2])


# --- the relay between the two --------------------------------------------------------------------------------------


@VERSIONS
def test_the_relay_matches_twice(version: int) -> None:
    async def test() -> None:
        async with HostileRelay(on_match=[FOUND]).running() as relay:
            two = Two(relay.url, version)
            for outcome in await two.pair():
                is_error(outcome, RelayProtocolViolation)
            assert two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize(
    ("raws", "kinds"),
    [
        (["x" * (64 * 1024 + 1)], {MessageTooBig}),
        ([data("x" * 64 * 1024)], {MessageTooBig}),
        # Closing takes two seconds, because so many frames are unread.
        pytest.param(
            [data("v2.AAAA")] * 2000, {InvalidPayload, PeerSpeaksV2, PeerGone, RelayClosed}, marks=pytest.mark.slow
        ),
        ([DONE], {PeerGone}),
        ([ACK], {RelayProtocolViolation}),
        ([b"\x00"], {RelayProtocolViolation}),
        (["hello"], {RelayProtocolViolation}),
        ([error("session_data_limit")], {SessionDataLimit}),
        ([error("otc_not_found")], {RelayClosed}),  # an error that can't occur at this point
        ([1011], {RelayClosed, PeerGone}),
    ],
)
def test_other_frames_after_the_match(version: int, raws: list[Any], kinds: set[type]) -> None:
    async def test() -> None:
        async with HostileRelay(on_match=raws).running() as relay:
            two = Two(relay.url, version)
            outcomes = await two.pair()
            assert {type(outcome) for outcome in outcomes} <= kinds
            assert two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("raw", [error("peer_disconnected"), DONE, FOUND, "x" * 70_000, 1011, data("nonsense")])
def test_other_frames_at_every_message(version: int, number: int, raw: Any) -> None:
    """Any frame may come instead of any message: no device is stored as a controller without agreement."""

    async def test() -> None:
        async with HostileRelay(on_data={number: [raw]}).running() as relay:
            two = Two(relay.url, version, timeouts=dataclasses.replace(QUICK, farewell=0.05))
            target, controller = await two.pair()
            if version == 1:
                if number < 4:
                    assert two.nothing_stored and isinstance(target, PairingError)
                assert isinstance(controller, PairingError if number < 5 else Paired)
            elif number < 7:
                assert isinstance(target, PairingError) and isinstance(controller, PairingError)
                assert two.no_controller
                assert two.nothing_stored or number == 6
            else:  # the last message: the target is done
                assert isinstance(target, Paired) and isinstance(controller, NotConfirmed)

    run(test())


def test_a_side_that_goes_silent() -> None:
    async def test() -> None:
        async with HostileRelay(on_data={0: []}).running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, message=SHORT))
            relay.tells = False
            for outcome in await two.pair():
                is_error(outcome, PeerSilent)
            assert two.nothing_stored

    run(test())


def test_downgrade_of_both_sides() -> None:
    async def test() -> None:
        async with HostileRelay(wire=SpeaksV1ToBoth).running() as relay:
            two = Two(relay.url)
            for outcome in await two.pair():
                assert isinstance(outcome, PeerSpeaksV1 | PeerGone)
            assert two.nothing_stored

    run(test())


@VERSIONS
def test_a_relay_that_talks_to_the_controller_alone(version: int) -> None:
    async def test() -> None:
        async with HostileRelay(wire=lambda: AloneWithController(version)).running() as relay:
            two = Two(relay.url, version)
            two.change("target", timeouts=dataclasses.replace(QUICK, message=SHORT))
            target, controller = await two.pair()
            is_error(controller, PairingDeclined)
            assert isinstance(target, PeerSilent | PeerGone) and two.nothing_stored

    run(test())


def test_a_relay_in_the_middle() -> None:
    def middle() -> MiddleV2:
        return MiddleV2(as_controller=party("laptop"), as_target=party("server"))

    async def test() -> None:
        async with HostileRelay(wire=middle).running() as relay:
            two = Two(relay.url)
            target, controller = await two.pair()
            is_error(target, WrongVerificationCode)
            is_error(controller, PeerRefused)
            assert two.nothing_stored
        async with HostileRelay(wire=MiddleV2).running() as relay:
            two = Two(relay.url)
            target, controller = await two.pair()
            is_error(target, InvalidSelfSignature)
            assert isinstance(controller, PairingError) and two.nothing_stored

    run(test())


def test_the_defaults_are_those_of_the_protocol() -> None:
    timeouts = Timeouts()
    assert (timeouts.peer, timeouts.message, timeouts.person) == (60, 30, 90)


def test_fifty_pairings_at_once() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            twos = [Two(relay.url) for _ in range(50)]
            outcomes = await asyncio.gather(*(two.pair() for two in twos))
            assert all(isinstance(outcome, Paired) for pair in outcomes for outcome in pair)

    run(test())
