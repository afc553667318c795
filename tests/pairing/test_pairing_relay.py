"""Pairing over the real relay: processes of daphne and a real Redis, and the effects on both clients if one of them dies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from authmesh.device import FileAllowList, LocalDevice, init_device
from authmesh.files.clock import utc_now
from authmesh.pairing import Paired, Timeouts
from authmesh.protocol.pairing.errors import (
    CodeInUse,
    CodeNotFound,
    CodeTaken,
    NobodyCame,
    PeerGone,
    RateLimited,
    RelayClosed,
    RelayFull,
    RelayUnreachable,
)
from tests.pairing.pairing_people import Outcome, Two, is_error
from tests.relay.relay_world import address, asynchronous, serving
from tests.support import services

pytestmark = pytest.mark.process

#: Long enough for a busy machine.
PATIENT = Timeouts(connect=30, relay=30, peer=60, message=30, person=60, farewell=2)


@contextmanager
def processes(folder: Path, redis: services.Redis, **limits: object) -> Iterator[list[services.Server]]:
    with serving(folder, redis.url, **limits) as one, serving(folder, redis.url, **limits) as other:
        yield [one, other]


def across(servers: list[services.Server], version: int = 2) -> Two:
    """A target that uses one process, and a controller that uses the other."""
    two = Two(address(servers[0]), version, timeouts=PATIENT)
    two.change("controller", relay=address(servers[-1]))
    return two


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


def sessions(server: services.Server) -> int:
    """Return the number of sessions that a process reports, or -1 if it reports none."""
    response = httpx.get(server.url + "/health", timeout=30)
    return int(response.json()["sessions"]) if response.status_code == 200 else -1


def paired(outcome: Outcome) -> Paired:
    assert isinstance(outcome, Paired), repr(outcome)
    return outcome


@asynchronous
async def test_across_two_processes(redis: services.Redis, tmp_path: Path) -> None:
    with processes(tmp_path, redis) as servers:
        for version in (2, 1):
            for places in (servers, servers[::-1]):
                two = across(places, version)
                target, controller = await two.pair()
                assert paired(target).entry.public_key == two.devices[1].identity.public_key
                assert paired(controller).entry.public_key == two.devices[0].identity.public_key
                assert (paired(target).entry.role, paired(controller).entry.role) == ("controller", "target")


@asynchronous
async def test_devices_on_disk(tmp_path: Path) -> None:
    """Pair twice with encrypted keys and sealed files: at the second time, both devices know each other."""
    for name in ("server", "laptop"):
        init_device(tmp_path / name, name, now=utc_now(), backend="encrypted-file", environ={"HOME": str(tmp_path)})
    server, laptop = [LocalDevice(tmp_path / name, environ={"HOME": str(tmp_path)}) for name in ("server", "laptop")]
    with serving(tmp_path) as relay:
        for again in (False, True):
            two = Two(address(relay), timeouts=PATIENT)
            two.change("target", device=server, allow_list=FileAllowList(server), now=utc_now)
            two.change("controller", device=laptop, allow_list=FileAllowList(laptop), now=utc_now)
            outcomes = [paired(outcome) for outcome in await two.pair()]
            assert [outcome.known is not None for outcome in outcomes] == [again, again]
    # Another process reads the files.
    listed = {}
    for device, peer, role in ((server, laptop, "controller"), (laptop, server, "target")):
        (entry,) = FileAllowList(LocalDevice(device.path, environ={"HOME": str(tmp_path)})).read()
        listed[entry.friendly_name] = entry.role
        assert (entry.public_key, entry.role, entry.added_by) == (peer.identity.public_key, role, "handshake")
    assert listed == {"laptop": "controller", "server": "target"}


#: The questions to a person at which the relay dies.
STEPS = {
    "the target is asked for the code": ("enter", False),
    "the target is asked whether to trust": ("confirm", False),
    "the controller is asked": ("", True),
}


@pytest.mark.unversioned  # it is the relay that dies, see test_relay_processes.py
@pytest.mark.parametrize("kill", ["the target's process", "the controller's process", "the only process"])
@pytest.mark.parametrize("step", list(STEPS))
def test_a_relay_is_killed(redis: services.Redis, tmp_path: Path, step: str, kill: str) -> None:
    @asynchronous
    async def test() -> None:
        with processes(tmp_path, redis) as servers:
            places = servers[:1] if kill == "the only process" else servers
            two = across(places)
            two.typist.waits_at, two.looker.waits = STEPS[step]
            await two.meet()
            asked = two.looker.asked if step == "the controller is asked" else two.typist.asked
            await until(lambda: (two.typist.waits_at or "confirm") in asked)
            places[0 if kill != "the controller's process" else -1].stop(signal.SIGKILL)
            async with asyncio.timeout(30):
                target, controller = await two.ends()
            expected = {
                "the target's process": (RelayClosed, PeerGone),
                "the controller's process": (PeerGone, RelayClosed),
                "the only process": (RelayClosed, RelayClosed),
            }[kill]
            for outcome, kind in zip((target, controller), expected, strict=True):
                is_error(outcome, kind)
            assert two.nothing_stored

    test()


@asynchronous
async def test_a_relay_is_killed_before_anybody_came_and_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as relay:
        two = Two(address(relay), timeouts=PATIENT)
        listening = two.listen()
        await until(two.room.one_time_code.done)
        relay.stop(signal.SIGKILL)
        is_error((await asyncio.gather(listening, return_exceptions=True))[0], RelayClosed)
        code = two.room.one_time_code.result()
        is_error((await asyncio.gather(two.invite(code), return_exceptions=True))[0], RelayUnreachable)
        relay.start()
        is_error((await asyncio.gather(two.invite(code), return_exceptions=True))[0], CodeNotFound)
        assert two.nothing_stored
        fresh = Two(address(relay), timeouts=PATIENT)
        for outcome in await fresh.pair():
            paired(outcome)


@asynchronous
async def test_redis_is_restarted_while_people_compare_codes(redis: services.Redis, tmp_path: Path) -> None:
    with processes(tmp_path, redis) as servers:
        broken, local = across(servers), across(servers[:1])
        for two in (broken, local):
            two.typist.waits_at = "enter"
            await two.meet()
            await until(lambda two=two: "enter" in two.typist.asked)  # type: ignore[misc]
        with redis.down():
            target, controller = await broken.ends()
            is_error(target, PeerGone)
            is_error(controller, PeerGone)
            assert broken.nothing_stored
            refused = across(servers)
            is_error((await asyncio.gather(refused.listen(), return_exceptions=True))[0], RelayFull)
            # Both devices of this pairing use the same process, which needs no Redis for it.
            assert not any(task.done() for task in local.tasks.values())
        for task in local.tasks.values():
            task.cancel()
        await local.ends()
        await until(lambda: min(map(sessions, servers)) >= 0)  # each process notices at its own pace that Redis is back
        for outcome in await across(servers).pair():
            paired(outcome)


@asynchronous
async def test_redis_is_restarted_while_the_target_waits(redis: services.Redis, tmp_path: Path) -> None:
    """The code that is already on the screen stays valid."""
    with processes(tmp_path, redis) as servers:
        two = across(servers)
        two.listen()
        await until(two.room.one_time_code.done)
        with redis.down():
            pass
        # Each process reports its sessions again when it is back, including the waiting one.
        await until(lambda: [sessions(server) for server in servers] == [1, 1])
        await until(two.room.one_time_code.done)
        two.invite(two.room.one_time_code.result())
        for outcome in await two.ends():
            paired(outcome)


@asynchronous
async def test_rejections_of_the_relay(tmp_path: Path) -> None:
    """Each rejection of the real relay is an error of its own."""
    limits = {"TRIES_PER_MINUTE": 12, "TRIES_PER_CODE": 2, "MATCH_SECONDS": 3}
    with serving(tmp_path, **limits) as relay:

        def fresh() -> Two:
            return Two(address(relay), timeouts=PATIENT)

        alone = fresh().listen()
        two = fresh()
        for _ in range(2):
            is_error((await asyncio.gather(two.invite("482916"), return_exceptions=True))[0], CodeNotFound)
        # Two failed attempts have burnt the code: a target that draws it by chance must use another one.
        insisting = fresh()
        listening = insisting.target.listen(insisting.typist, generate=lambda: "482916")
        is_error((await asyncio.gather(listening, return_exceptions=True))[0], CodeInUse)

        two = fresh()
        two.typist.waits_at = "enter"
        await two.meet()
        await until(lambda: "enter" in two.typist.asked)
        third = fresh()
        is_error(
            (await asyncio.gather(third.invite(two.room.one_time_code.result()), return_exceptions=True))[0], CodeTaken
        )
        limited = []
        for _ in range(12):
            limited += await asyncio.gather(fresh().invite("100000"), return_exceptions=True)
        assert RateLimited in {type(outcome) for outcome in limited}
        for task in two.tasks.values():
            task.cancel()
        await two.ends()
        is_error((await asyncio.gather(alone, return_exceptions=True))[0], NobodyCame)


@asynchronous
async def test_two_hundred_pairings_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as relay:
        twos = [Two(address(relay), timeouts=PATIENT) for _ in range(200)]
        outcomes = await asyncio.gather(*(two.pair() for two in twos))
        assert all(isinstance(outcome, Paired) for both in outcomes for outcome in both)
        for two in twos:
            (controller,), (target,) = (allow_list.entries for allow_list in two.lists)
            assert controller.public_key == two.devices[1].identity.public_key
            assert target.public_key == two.devices[0].identity.public_key
        assert "Traceback" not in relay.output()
