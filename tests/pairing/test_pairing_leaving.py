"""Pairing over real sockets: one side leaves, is interrupted or takes too long."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from authmesh.pairing import Met, Paired
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.pairing.errors import NotConfirmed, PeerGone
from tests.pairing.hostile_relay import HostileRelay
from tests.pairing.pairing_people import QUICK, SHORT, Two, entry, is_error, run
from tests.pairing.pairing_world import MemoryAllowList

VERSIONS = pytest.mark.parametrize("version", [1, 2])


# --- somebody leaves ------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_interrupted_at_a_question_of_the_target(version: int, question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, version)
            before = two.lists[0].entries = [entry("old")] if question == "replace" else []
            two.typist.waits_at = question
            await two.meet()
            while question not in two.typist.asked:
                await asyncio.sleep(0.01)
            two.tasks["target"].cancel()
            target, controller = await two.ends()
            is_error(target, asyncio.CancelledError)
            is_error(controller, PeerGone)
            assert two.lists[0].entries == before and two.lists[1].entries == []

    run(test())


@pytest.mark.parametrize("question", ["enter", "confirm", "replace"])
def test_the_controller_leaves_while_the_target_is_asked(question: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            before = two.lists[0].entries = [entry("old")] if question == "replace" else []
            two.typist.waits_at = question
            await two.meet()
            while question not in two.typist.asked:
                await asyncio.sleep(0.01)
            two.tasks["controller"].cancel()
            target, _ = await two.ends()
            is_error(target, PeerGone)
            assert two.typist.cancelled, "the question is taken back"
            assert two.lists[0].entries == before

    run(test())


def test_interrupted_at_the_question_of_the_controller() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            for leaver in ("controller", "target"):
                two = Two(relay.url)
                two.looker.waits = True
                await two.meet()
                while "confirm" not in two.looker.asked:
                    await asyncio.sleep(0.01)
                two.tasks[leaver].cancel()
                target, controller = await two.ends()
                is_error(target if leaver == "controller" else controller, PeerGone)
                assert two.nothing_stored

    run(test())


@pytest.mark.slow
def test_a_target_of_version_1_may_leave_before_the_controller_answers() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, 1)
            answer = asyncio.Event()

            async def slowly(met: Met) -> bool:
                await answer.wait()
                return True

            two.looker.confirm_verified = slowly  # type: ignore[method-assign]
            await two.meet()
            assert isinstance(await two.tasks["target"], Paired)
            await asyncio.sleep(0.05)
            answer.set()
            target, controller = await two.ends()
            assert isinstance(target, Paired) and isinstance(controller, Paired)

    run(test())


def test_the_target_stays_until_its_last_message_has_arrived() -> None:
    async def test() -> None:
        async with HostileRelay(on_data={7: []}).running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, farewell=30))
            await two.meet()
            while "finished" not in two.typist.steps:
                await asyncio.sleep(0.01)
            assert not two.tasks["target"].done()
            leaver = relay.sessions[two.room.one_time_code.result()].controller
            assert leaver is not None
            await leaver.close()
            target, controller = await two.ends()  # the controller has left, so the target does not wait longer
            assert isinstance(target, Paired)
            is_error(controller, NotConfirmed)

    run(test())


class Slow(MemoryAllowList):
    """A list that is slow to write."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = False

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        import time

        self.writing = True
        time.sleep(SHORT)
        super().add(entry, replacing=replacing)


def test_interrupted_during_the_write() -> None:
    """A started write is finished, and reported to the front end."""

    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            slow = Slow()
            two.change("target", allow_list=slow)
            await two.meet()
            while not slow.writing:
                await asyncio.sleep(0.01)
            two.tasks["target"].cancel()
            target, controller = await two.ends()
            is_error(target, asyncio.CancelledError)
            assert len(slow.entries) == 1 and two.typist.steps[-1] == "stored"
            is_error(controller, NotConfirmed)
            assert [e.role for e in two.lists[1].entries] == ["target"]

    run(test())
