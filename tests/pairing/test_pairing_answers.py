"""Pairing over real sockets: the answers of the two people and their effects."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from authmesh.pairing import Met, Paired
from authmesh.protocol.errors import ControllerLimitReached, DeviceNotFound
from authmesh.protocol.pairing.errors import (
    PairingDeclined,
    PeerGone,
    PeerRefused,
    TookTooLong,
    WrongVerificationCode,
)
from tests.pairing.hostile_relay import HostileRelay
from tests.pairing.pairing_people import QUICK, SHORT, Two, entry, is_error, run
from tests.pairing.pairing_world import party

VERSIONS = pytest.mark.parametrize("version", [1, 2])


@VERSIONS
def test_a_wrong_code(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            two.typist.types = lambda shown: "000000" if shown != "000000" else "000001"
            target, controller = await two.pair()
            is_error(target, WrongVerificationCode)
            is_error(controller, PeerRefused)
            assert two.nothing_stored and two.typist.asked == ["show_code", "enter"]  # only one attempt

    run(test())


def test_a_malformed_code_costs_no_attempt() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            answers = ["12345", ""]
            two.typist.types = lambda shown: answers.pop() if answers else f" {shown[:3]} {shown[3:]}\n"
            assert all(isinstance(outcome, Paired) for outcome in await two.pair())
            assert two.typist.asked[1:4] == ["enter", "again", "again"]

            two = Two(relay.url)
            two.typist.types = lambda shown: "?"
            target, controller = await two.pair()
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert two.typist.asked == ["show_code", "enter", "again", "again"] and two.nothing_stored

    run(test())


@VERSIONS
@pytest.mark.parametrize("gives_up", [True, False])
def test_the_person_at_the_target_declines(version: int, gives_up: bool) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            if gives_up:
                two.typist.types = lambda shown: None
            else:
                two.typist.says = False
            target, controller = await two.pair()
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert two.nothing_stored

    run(test())


def test_the_person_at_the_controller_declines() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.looker.says = False
            target, controller = await two.pair()
            is_error(target, PeerRefused)
            is_error(controller, PairingDeclined)
            assert two.nothing_stored

    run(test())


def test_no_answer_means_no() -> None:
    """By default, a front end replaces no controller and confirms nothing."""
    from authmesh.pairing.operators import ControllerOperator, TargetOperator

    met = Met(party(), None)  # type: ignore[arg-type]
    assert asyncio.run(ControllerOperator.confirm_verified(object(), met)) is False  # type: ignore[arg-type]
    assert asyncio.run(TargetOperator.choose_replaced(object(), met, [], 1)) is None  # type: ignore[arg-type]


@VERSIONS
def test_a_controller_is_replaced_only_if_the_operator_says_so(version: int) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            old = entry("old")
            two.lists[0].entries = [entry("a target", "target"), old]
            target, controller = await two.pair()  # the operator does not say so
            is_error(target, PairingDeclined)
            is_error(controller, PeerRefused)
            assert [e.friendly_name for e in two.lists[0].entries] == ["a target", "old"] and two.lists[1].entries == []

            again = Two(relay.url, version)
            again.lists[0].entries = list(two.lists[0].entries)
            again.typist.replaces = lambda controllers: controllers[0].device_id
            target, _ = await again.pair()
            assert isinstance(target, Paired) and target.replaced == old
            assert [e.friendly_name for e in again.lists[0].entries] == ["a target", "laptop"]

    run(test())


def test_too_many_controllers_for_one_replacement() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[0].entries = [entry("one"), entry("two")]
            target, controller = await two.pair()
            is_error(target, ControllerLimitReached)
            assert "Revoke 2 of them" in str(target)
            is_error(controller, PeerRefused)
            assert "replace" not in two.typist.asked

            two = Two(relay.url)
            two.lists[0].entries = [entry("one")]
            two.typist.replaces = lambda controllers: "am_somebodyelse"
            target, controller = await two.pair()
            is_error(target, DeviceNotFound)
            is_error(controller, PeerRefused)

    run(test())


class NobodyThere(Exception):
    """The error of a front end that cannot ask."""


@pytest.mark.parametrize("question", ["enter", "confirm", "replace", "look"])
def test_a_front_end_that_cannot_ask(question: str) -> None:
    """The error is raised unchanged, and the other device gets the answer no."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.lists[0].entries = [entry("old")]

            async def cannot(*args: Any, **options: Any) -> Any:
                raise NobodyThere

            if question == "look":
                two.lists[0].entries = []
                two.looker.confirm_verified = cannot  # type: ignore[method-assign]
            else:
                name = {"enter": "enter_verification_code", "confirm": "confirm_peer", "replace": "choose_replaced"}
                setattr(two.typist, name[question], cannot)
            target, controller = await two.pair()
            is_error(controller if question == "look" else target, NobodyThere)
            is_error(target if question == "look" else controller, PeerRefused)
            assert not any(e.friendly_name in ("laptop", "server") for held in two.lists for e in held.entries)

    run(test())


@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_the_person_at_the_target_takes_too_long(question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            if question == "replace":
                two.lists[0].entries = [entry("old")]
            two.change("target", timeouts=dataclasses.replace(QUICK, person=SHORT))
            two.typist.waits_at = question
            target, controller = await two.pair()
            is_error(target, TookTooLong)
            is_error(controller, PeerGone)
            assert two.typist.cancelled and two.lists[1].entries == []

    run(test())


@pytest.mark.slow
def test_all_questions_of_the_target_share_one_limit() -> None:
    """The controller waits once for all answers."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("target", timeouts=dataclasses.replace(QUICK, person=2 * SHORT))
            two.lists[0].entries = [entry("old")]

            async def slowly(*args: Any, **options: Any) -> bool:
                await asyncio.sleep(1.4 * SHORT)
                return True

            two.typist.confirm_peer = slowly  # type: ignore[method-assign]
            two.typist.choose_replaced = slowly  # type: ignore[assignment, method-assign]
            target, controller = await two.pair()
            is_error(target, TookTooLong)
            is_error(controller, PeerGone)

    run(test())


def test_the_person_at_the_controller_takes_too_long() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.change("controller", timeouts=dataclasses.replace(QUICK, person=SHORT))
            two.looker.waits = True
            target, controller = await two.pair()
            is_error(controller, TookTooLong)
            is_error(target, PeerGone)
            assert two.nothing_stored

    run(test())
