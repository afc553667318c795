"""Bootstrap tokens over the relay of this process: watch, init, ack and reject."""

from __future__ import annotations

import pytest

from amesh_django.relay.exchange.base import Ref, Unavailable
from amesh_django.relay.exchange.memory import MemoryExchange
from tests.relay.relay_world import JTI, OTC, Client, asynchronous, relay

pytestmark = pytest.mark.unversioned

INIT = {"jti": JTI, "targetPubKey": "k", "proof": "p", "targetSig": "s"}


async def watch(client: Client, jti: str = JTI) -> None:
    await client.send("bootstrap_watch", jti=jti)
    assert await client.receive() == {"type": "bootstrap_watching", "jti": jti}


@asynchronous
async def test_a_token() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        await target.send("bootstrap_init", **INIT, extra="no")
        assert await controller.receive() == {"type": "bootstrap_init", **INIT}
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert await target.receive() == {
            "type": "bootstrap_ack",
            "jti": JTI,
            "controllerPubKey": "K",
            "controllerSig": "S",
        }
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert await controller.error() == "invalid_jti"
        assert await target.hears_nothing()


@asynchronous
async def test_the_reference_sends_the_token_itself() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        await target.send("bootstrap_init", jti=JTI, token="t", targetPubKey="k")
        assert await controller.receive() == {"type": "bootstrap_init", "jti": JTI, "token": "t", "targetPubKey": "k"}
        await controller.send("bootstrap_reject", jti=JTI, error="token_expired")
        assert await target.receive() == {"type": "bootstrap_reject", "jti": JTI, "error": "token_expired"}


@asynchronous
async def test_used_once() -> None:
    async with relay() as world:
        controller = await world.client()
        await watch(controller)
        first, second = await world.client("192.0.2.2"), await world.client("192.0.2.3")
        await first.send("bootstrap_init", **INIT)
        await controller.receive()
        await second.send("bootstrap_init", **INIT)
        assert await second.receive() == {"type": "bootstrap_reject", "error": "token_already_used"}
        assert await controller.hears_nothing()
        await controller.leave()
        watcher, later = await world.client("192.0.2.5"), await world.client("192.0.2.4")
        await watch(watcher)
        for seconds, refused in ((25 * 3600 - 1, True), (1, False)):
            world.clock.now += seconds
            if not refused:
                await watch(watcher)
            await later.send("bootstrap_init", **INIT)
            if refused:
                assert (await later.receive())["error"] == "token_already_used"
        assert (await watcher.receive())["type"] == "bootstrap_init"


@asynchronous
async def test_nobody_watches_and_nothing_is_burnt() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        for _ in range(3):
            await target.send("bootstrap_init", **INIT)
            assert await target.receive() == {"type": "bootstrap_reject", "error": "no_watcher"}
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        assert (await controller.receive())["type"] == "bootstrap_init"


@asynchronous
async def test_only_the_watcher_answers() -> None:
    async with relay() as world:
        controller, target, thief = [await world.client(f"192.0.2.{number}") for number in range(3)]
        await watch(controller)
        await thief.send("bootstrap_watch", jti=JTI)
        assert await thief.error() == "jti_already_watched"
        for phase in range(2):
            if phase:
                await target.send("bootstrap_init", **INIT)
                await controller.receive()
            for stranger in (thief, target):
                await stranger.send("bootstrap_ack", jti=JTI, publicKey="E", controllerSig="E")
                assert await stranger.error() == "invalid_jti"
                await stranger.send("bootstrap_reject", jti=JTI, error="token_expired")
                assert await stranger.error() == "invalid_jti"
        assert await target.hears_nothing()
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert (await target.receive())["controllerPubKey"] == "K"


@asynchronous
async def test_who_waits_for_another_watcher_to_go_may_stay() -> None:
    async with relay() as world:
        controller, second = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        for _ in range(20):
            await second.send("bootstrap_watch", jti=JTI)
            assert await second.error() == "jti_already_watched"
            await world.passes(14)
        await controller.leave()
        await watch(second)


@asynchronous
async def test_a_watch_lasts_five_minutes_and_can_be_renewed() -> None:
    async with relay() as world:
        controller = await world.client()
        await watch(controller)
        await world.passes(299)
        other = await world.client("192.0.2.2")
        await other.send("bootstrap_watch", jti=JTI)
        assert await other.error() == "jti_already_watched"
        await watch(controller)
        await world.passes(299)
        await watch(controller)
        await world.passes(301)
        target = await world.client("192.0.2.3")
        await target.send("bootstrap_init", **INIT)
        assert (await target.receive())["error"] == "no_watcher"
        watcher = await world.client("192.0.2.4")
        await watch(watcher)
        assert await controller.hears_nothing()
        await world.passes(90)
        assert await controller.closed() == 1001


@asynchronous
async def test_a_watcher_that_leaves() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        await controller.receive()
        await controller.leave()
        assert await target.error() == "peer_disconnected"
        await target.send("bootstrap_init", **INIT)
        assert (await target.receive())["error"] == "token_already_used"
        again = await world.client()
        await watch(again)


@asynchronous
async def test_a_watcher_that_says_nothing() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        await controller.receive()
        await target.send("bootstrap_init", **INIT)
        assert await target.error() == "invalid_message"
        await target.send("listen", otc=OTC)
        assert await target.error() == "invalid_message"
        await world.passes(179)
        assert await target.hears_nothing()
        await world.passes(1)
        assert await target.error() == "peer_disconnected"
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert await controller.error() == "invalid_jti"


@asynchronous
async def test_a_target_that_leaves() -> None:
    async with relay() as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        await controller.receive()
        await target.leave()
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert await controller.hears_nothing()


@asynchronous
async def test_one_connection_serves_many_tokens() -> None:
    async with relay(WATCHES_PER_MINUTE=1000, WATCHES_PER_CONNECTION=50) as world:
        controller = await world.client()
        for number in range(50):
            await watch(controller, f"bt_{number}")
        await controller.send("bootstrap_watch", jti="bt_one_more")
        assert await controller.error() == "relay_capacity"
        await watch(controller, "bt_7")
        for number in (7, 42):
            target = await world.client(f"192.0.2.{number}")
            await target.send("bootstrap_init", jti=f"bt_{number}", token="t", targetPubKey="k")
            assert (await controller.receive())["jti"] == f"bt_{number}"
            await controller.send("bootstrap_reject", jti=f"bt_{number}", error="token_expired")
            assert (await target.receive())["jti"] == f"bt_{number}"


@pytest.mark.parametrize("same", [True, False])
@asynchronous
async def test_ten_watches_a_minute_and_address(same: bool) -> None:
    async with relay() as world:
        controller = await world.client()
        for number in range(10):
            await watch(controller, JTI if same else f"bt_{number}")
        await controller.send("bootstrap_watch", jti="bt_x")
        assert await controller.error() == "rate_limited"
        await controller.send("listen", otc=OTC)
        assert (await controller.receive())["type"] == "ack"
        await watch(await world.client("192.0.2.2"), "bt_x")
        await world.passes(60)
        assert await controller.error() == "otc_not_found"
        await watch(controller, "bt_y")


@asynchronous
async def test_as_many_watches_as_there_may_be() -> None:
    async with relay(MAX_SESSIONS=2) as world:
        controller = await world.client()
        await watch(controller, "a")
        await watch(controller, "b")
        await controller.send("bootstrap_watch", jti="c")
        assert await controller.error() == "relay_capacity"
        await watch(controller, "a")


@asynchronous
async def test_as_many_used_tokens_as_are_remembered() -> None:
    """A used token that is forgotten could be used twice."""
    async with relay(MAX_USED_TOKENS=1) as world:
        controller, target = await world.client(), await world.client("192.0.2.2")
        await watch(controller, "a")
        await watch(controller, "b")
        await target.send("bootstrap_init", jti="a", token="t", targetPubKey="k")
        await controller.receive()
        other = await world.client("192.0.2.3")
        await other.send("bootstrap_init", jti="b", token="t", targetPubKey="k")
        assert await other.receive() == {"type": "bootstrap_reject", "error": "relay_capacity"}


@asynchronous
async def test_what_the_watcher_rejects_is_not_used_up() -> None:
    """Anyone who has seen the name of a token can send it, but only its owner has the proof."""
    async with relay(MAX_USED_TOKENS=1) as world:
        controller, thief, target = [await world.client(f"192.0.2.{number}") for number in range(3)]
        for leaves in (False, True):
            await watch(controller)
            await thief.send("bootstrap_init", **INIT | {"proof": "wrong"})
            await controller.receive()
            if leaves:
                await thief.leave()
            await controller.send("bootstrap_reject", jti=JTI, error="invalid_init")
            if not leaves:
                assert (await thief.receive())["error"] == "invalid_init"
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        assert await controller.receive() == {"type": "bootstrap_init", **INIT}
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert (await target.receive())["type"] == "bootstrap_ack"
        await watch(controller)
        await target.send("bootstrap_init", **INIT)
        assert (await target.receive())["error"] == "token_already_used"


@asynchronous
async def test_sixty_tokens_a_minute_and_address() -> None:
    """The error is not about the token: a target tries again."""
    async with relay(MAX_ERRORS=1000) as world:
        target = await world.client()
        for _ in range(60):
            await target.send("bootstrap_init", **INIT)
            assert await target.receive() == {"type": "bootstrap_reject", "error": "no_watcher"}
        await target.send("bootstrap_init", **INIT)
        assert await target.error() == "rate_limited"
        await world.passes(60)
        await target.send("bootstrap_init", **INIT)
        assert await target.receive() == {"type": "bootstrap_reject", "error": "no_watcher"}


class Flaky(MemoryExchange):
    """An exchange that cannot be reached for a while."""

    down = False

    async def unwatch(self, jti: str, me: Ref) -> None:
        if self.down:
            raise Unavailable
        await super().unwatch(jti, me)

    async def unuse(self, jti: str) -> None:
        if self.down:
            raise Unavailable
        await super().unuse(jti)


@asynchronous
async def test_what_cant_be_said_now_is_said_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the watcher is gone, the target is told so, and its token can still be used."""

    async def lost(*args: object) -> bool:
        return False

    async with relay() as world:
        world.hub.exchange = exchange = Flaky(world.hub.settings, world.clock)
        first, second, target = [await world.client(f"192.0.2.{number}") for number in (1, 2, 3)]
        await watch(first)
        await watch(first, "bt_2")
        exchange.down = True
        with monkeypatch.context() as patch:
            patch.setattr(world.hub, "tell", lost)
            await target.send("bootstrap_init", **INIT | {"jti": "bt_2"})
            assert (await target.receive())["error"] == "no_watcher"
            await first.leave()
        await second.send("bootstrap_watch", jti=JTI)
        assert await second.error() == "jti_already_watched"
        exchange.down = False
        await world.hub.on_return()
        await watch(second)
        await watch(second, "bt_2")
        await target.send("bootstrap_init", **INIT | {"jti": "bt_2"})
        assert (await second.receive())["type"] == "bootstrap_init"
