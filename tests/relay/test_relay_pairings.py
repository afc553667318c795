"""Pairings over a relay in this process: every message, every error, every limit, with a clock that the tests control."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from amesh_django.relay.exchange.base import Event, Ref, Unavailable
from tests.relay.relay_world import JTI, OTC, Relay, asynchronous, relay, settle

pytestmark = pytest.mark.unversioned


@asynchronous
async def test_a_pairing() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        assert await world.sessions() == 1
        for number in range(50):
            await target.send("data", payload=f"t{number}", hidden="x")
            await controller.send("data", payload=f"c{number}")
        for number in range(50):
            assert await controller.receive() == {"type": "data", "payload": f"t{number}"}
            assert await target.receive() == {"type": "data", "payload": f"c{number}"}
        await controller.send("done", payload="x")
        assert await target.receive() == {"type": "done"}
        assert await world.sessions() == 0
        assert await controller.hears_nothing()


@asynchronous
async def test_both_may_go_on_with_another_pairing() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        await target.send("done")
        assert await controller.receive() == {"type": "done"}
        await controller.send("listen", otc=OTC)
        await target.send("connect", otc=OTC)
        assert [(await controller.receive())["type"] for _ in range(2)] == ["ack", "peer_found"]
        assert (await target.receive())["type"] == "peer_found"


@asynchronous
async def test_what_comes_when_it_is_over_is_dropped() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        await target.send("done")
        assert await controller.receive() == {"type": "done"}
        await target.send("data", payload="late")
        await controller.send("data", payload="late")
        await controller.send("done")
        assert await target.hears_nothing()
        assert await controller.hears_nothing()


@asynchronous
async def test_data_before_anybody_has_come_is_dropped() -> None:
    async with relay() as world:
        target, controller = await world.client(), await world.client("192.0.2.2")
        await target.send("listen", otc=OTC)
        await target.receive()
        await target.send("data", payload="early")
        await controller.send("connect", otc=OTC)
        assert await controller.receive() == {"type": "peer_found"}
        assert await controller.hears_nothing()


@pytest.mark.parametrize("leaver", [0, 1])
@asynchronous
async def test_who_leaves_ends_it_for_the_other(leaver: int) -> None:
    async with relay() as world:
        sides = await world.pair()
        stays = sides[1 - leaver]
        await sides[leaver].send("data", payload="the last word")
        await sides[leaver].leave()
        assert await stays.receive() == {"type": "data", "payload": "the last word"}
        assert await stays.error() == "peer_disconnected"
        assert await world.sessions() == 0
        await stays.send("listen", otc=OTC)
        assert (await stays.receive())["type"] == "ack"


# --- codes ------------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_code_that_is_being_used_cant_be_taken_over() -> None:
    async with relay() as world:
        target, thief, late = await world.client(), await world.client("192.0.2.2"), await world.client("192.0.2.3")
        await target.send("listen", otc=OTC)
        await target.receive()
        await thief.send("listen", otc=OTC)
        assert await thief.error() == "otc_in_use"
        controller = await world.client("192.0.2.4")
        await controller.send("connect", otc=OTC)
        assert (await controller.receive())["type"] == (await target.receive())["type"] == "peer_found"
        await thief.send("listen", otc=OTC)
        assert await thief.error() == "otc_in_use"
        await late.send("connect", otc=OTC)
        assert await late.error() == "peer_already_connected"
        # Nor can anybody else speak into the session or end it.
        for stranger in (thief, late):
            await stranger.send("data", payload="x")
            await stranger.send("done")
            await stranger.leave()
        assert await target.hears_nothing()
        assert await controller.hears_nothing()
        await target.send("data", payload="still here")
        assert (await controller.receive())["payload"] == "still here"


@asynchronous
async def test_one_session_at_a_time() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        for side in (target, controller):
            for kind in ("listen", "connect"):
                await side.send(kind, otc="111111")
                assert await side.error() == "invalid_message"
        await target.send("data", payload="undisturbed")
        assert (await controller.receive())["payload"] == "undisturbed"


@asynchronous
async def test_unknown_code() -> None:
    async with relay() as world:
        controller = await world.client()
        await controller.send("connect", otc=OTC)
        assert await controller.error() == "otc_not_found"


@asynchronous
async def test_a_target_that_changes_its_mind() -> None:
    async with relay() as world:
        target = await world.client()
        await target.send("listen", otc=OTC)
        await target.receive()
        await target.send("done")
        assert await world.sessions() == 0
        await target.send("listen", otc=OTC)
        assert (await target.receive())["type"] == "ack"
        await target.leave()
        assert await world.sessions() == 0


@asynchronous
async def test_five_failed_tries_burn_a_code() -> None:
    async with relay() as world:
        for number in range(5):
            controller = await world.client(f"192.0.2.{number}")
            await controller.send("connect", otc=OTC)
            assert await controller.error() == "otc_not_found"
        target = await world.client("192.0.2.50")
        await target.send("listen", otc=OTC)
        assert await target.error() == "otc_in_use"
        await target.send("listen", otc="111111")
        assert (await target.receive())["type"] == "ack"
        await world.passes(599)
        other = await world.client("192.0.2.51")
        await other.send("connect", otc=OTC)
        assert await other.error() == "otc_not_found"
        await world.passes(599)  # from the last try on
        again = await world.client("192.0.2.52")
        await again.send("listen", otc=OTC)
        assert await again.error() == "otc_in_use"
        await world.passes(2)
        await again.send("listen", otc=OTC)
        assert (await again.receive())["type"] == "ack"


@asynchronous
async def test_tries_on_a_session_that_goes_on_burn_its_code_but_not_the_session() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        for number in range(5):
            thief = await world.client(f"192.0.2.{number}")
            await thief.send("connect", otc=OTC)
            assert await thief.error() == "peer_already_connected"
        await target.send("data", payload="x")
        assert (await controller.receive())["payload"] == "x"
        await target.send("done")
        await controller.receive()
        await target.send("listen", otc=OTC)
        assert await target.error() == "otc_in_use"


# --- time -------------------------------------------------------------------------------------------------------------


@asynchronous
async def test_nobody_comes() -> None:
    async with relay() as world:
        target, controller = await world.client(), await world.client("192.0.2.2")
        await target.send("listen", otc=OTC)
        await target.receive()
        await world.passes(59.9)
        assert await target.hears_nothing()
        world.clock.now += 0.1  # before anybody has looked
        await controller.send("connect", otc=OTC)
        assert await controller.error() == "otc_not_found"
        await world.passes(0)
        assert await target.error() == "otc_not_found"
        assert await world.sessions() == 0
        await target.send("listen", otc=OTC)
        assert (await target.receive())["type"] == "ack"


@asynchronous
async def test_a_matched_session_has_180_seconds_more() -> None:
    async with relay() as world:
        target, controller = await world.client(), await world.client("192.0.2.2")
        await target.send("listen", otc=OTC)
        await target.receive()
        await world.passes(59)
        await controller.send("connect", otc=OTC)
        assert (await controller.receive())["type"] == (await target.receive())["type"] == "peer_found"
        await world.passes(179)
        await target.send("data", payload="x")
        assert (await controller.receive())["payload"] == "x"
        await world.passes(1.1)
        assert await target.error() == await controller.error() == "peer_disconnected"
        assert await world.sessions() == 0


@asynchronous
async def test_who_does_nothing_is_closed() -> None:
    async with relay() as world:
        idle, busy, chatty = await world.client(), await world.client("192.0.2.2"), await world.client("192.0.2.3")
        await world.passes(80)
        await busy.send("listen", otc=OTC)
        await busy.receive()
        await chatty.send("nonsense")
        assert await chatty.error() == "unknown_type"
        await world.passes(10)
        assert await idle.closed() == await chatty.closed() == 1001
        await idle.send("listen", otc="111111")
        assert await idle.hears_nothing()
        await world.passes(55)
        assert await busy.error() == "otc_not_found"
        await world.passes(85)
        assert await busy.hears_nothing()
        await world.passes(6)
        assert await busy.closed() == 1001


# --- how much, how often ----------------------------------------------------------------------------------------------


@asynchronous
async def test_five_megabytes_a_session() -> None:
    async with relay(MAX_SESSION_BYTES=10_000) as world:
        target, controller = await world.pair()
        for sender, receiver in ((target, controller), (controller, target)) * 2:
            await sender.send("data", payload="x" * 2000)
            assert (await receiver.receive())["type"] == "data"
        await target.send("data", payload="x" * 2000)
        assert await target.error() == await controller.error() == "session_data_limit"
        assert await world.sessions() == 0
        await controller.send("data", payload="x")
        assert await target.hears_nothing()


@asynchronous
async def test_what_is_not_forwarded_counts_as_well() -> None:
    async with relay(MAX_SESSION_BYTES=10_000) as world:
        target, controller = await world.pair()
        for _ in range(2):
            await target.send("data", payload="", junk="x" * 4000)
            await controller.receive()
        await target.send("data", payload="", junk="x" * 4000)
        assert await target.error() == "session_data_limit"


@asynchronous
async def test_the_longest_message() -> None:
    async with relay() as world:
        target, controller = await world.pair()
        frame = json.dumps({"type": "data", "payload": ""})
        await target.send_text(frame.replace('""', '"' + "x" * (65_536 - len(frame)) + '"'))
        assert len((await controller.receive())["payload"]) == 65_536 - len(frame)
        await controller.send_text(frame.replace('""', '"' + "€" * ((65_537 - len(frame) + 2) // 3) + '"'))
        assert await controller.closed() == 1009
        assert await target.error() == "peer_disconnected"


@asynchronous
async def test_five_tries_a_minute_and_address() -> None:
    async with relay() as world:
        first, second = await world.client(), await world.client()
        for number in range(3):
            await first.send("connect", otc=f"11111{number}")
            assert await first.error() == "otc_not_found"
        await second.send("listen", otc=OTC)
        assert (await second.receive())["type"] == "ack"
        await first.send("connect", otc=OTC)
        assert (await first.receive())["type"] == (await second.receive())["type"] == "peer_found"
        await first.send("done")
        await second.receive()
        for kind in ("listen", "connect"):
            await first.send(kind, otc="222222")
            assert await first.error() == "rate_limited"
        await first.send("connect", otc="12")
        assert await first.error() == "invalid_otc"
        other = await world.client("192.0.2.2")
        await other.send("listen", otc="222222")
        assert (await other.receive())["type"] == "ack"
        await world.passes(59)
        await first.send("listen", otc="333333")
        assert await first.error() == "rate_limited"
        await world.passes(1)
        await first.send("listen", otc="333333")
        assert (await first.receive())["type"] == "ack"


@asynchronous
async def test_addresses_of_one_network_count_as_one() -> None:
    async with relay() as world:
        for number in range(5):
            client = await world.client(f"2001:db8:1:2::{number}")
            await client.send("connect", otc="111111")
            await client.error()
        sixth, other = await world.client("2001:db8:1:2:9::"), await world.client("2001:db8:1:3::1")
        await sixth.send("listen", otc=OTC)
        assert await sixth.error() == "rate_limited"
        await other.send("listen", otc=OTC)
        assert (await other.receive())["type"] == "ack"


@asynchronous
async def test_as_many_sessions_as_there_may_be() -> None:
    async with relay(MAX_SESSIONS=2) as world:
        clients = [await world.client(f"192.0.2.{number}") for number in range(3)]
        for number, client in enumerate(clients[:2]):
            await client.send("listen", otc=f"11111{number}")
            await client.receive()
        await clients[2].send("listen", otc=OTC)
        assert await clients[2].error() == "relay_capacity"
        await clients[0].leave()
        await clients[2].send("listen", otc=OTC)
        assert (await clients[2].receive())["type"] == "ack"


@asynchronous
async def test_as_many_connections_as_there_may_be() -> None:
    async with relay(MAX_CONNECTIONS=2) as world:
        first, _ = await world.client(), await world.client()
        third = await world.client()
        assert await third.closed() == 1013
        assert world.hub.counts["closed:1013"] == 1
        await third.send("listen", otc=OTC)
        assert await third.hears_nothing()
        await first.leave()
        fourth = await world.client()
        await fourth.send("listen", otc=OTC)
        assert (await fourth.receive())["type"] == "ack"


@asynchronous
async def test_as_many_connections_as_one_address_may_have() -> None:
    async with relay(CONNECTIONS_PER_ADDRESS=2) as world:
        first, _ = await world.client(), await world.client()
        third, other = await world.client(), await world.client("192.0.2.2")
        assert await third.error() == "rate_limited"
        assert await third.closed() == 1013
        assert await other.hears_nothing()
        await first.leave()
        assert await (await world.client()).hears_nothing()


@asynchronous
async def test_as_many_connections_as_one_network_may_have() -> None:
    async with relay(CONNECTIONS_PER_ADDRESS=2, ADDRESSES_PER_NETWORK=2) as world:
        first, *_ = [await world.client(f"2001:db8:1:{number}::1") for number in range(4)]
        fifth, other = await world.client("2001:db8:1:ffff::1"), await world.client("2001:db8:2::1")
        assert await fifth.error() == "rate_limited"
        assert await fifth.closed() == 1013
        assert await other.hears_nothing()
        await first.leave()
        assert await (await world.client("2001:db8:1:ffff::1")).hears_nothing()


@asynchronous
async def test_who_only_makes_mistakes_is_closed() -> None:
    async with relay(MAX_ERRORS=3) as world:
        client = await world.client()
        for text in ("null", "[]", "{"):
            await client.send_text(text)
            assert await client.error() == "invalid_message"
        await client.send_bytes(b'{"type":"done"}')
        assert await client.error() == "invalid_message"
        assert await client.closed() == 1008


@asynchronous
async def test_mistakes_of_a_long_life_do_not_add_up() -> None:
    async with relay(MAX_ERRORS=3) as world:
        client = await world.client()
        await client.send("bootstrap_watch", jti=JTI)
        await client.receive()
        for _ in range(4):
            for _ in range(3):
                await client.send_text("null")
                assert await client.error() == "invalid_message"
            await world.passes(60)


@asynchronous
async def test_who_talks_to_nobody_is_closed() -> None:
    async with relay(MAX_ERRORS=3) as world:
        client = await world.client()
        for _ in range(4):
            await client.send("data", payload="x")
        assert await client.closed() == 1008


# --- who may come -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "origin", "gets_in"),
    [
        ([], None, True),
        ([], b"https://evil.example", False),
        ([], b"null", False),
        (["https://good.example"], b"https://good.example", True),
        (["https://good.example"], b"https://good.example.evil.example", False),
        (["*"], b"https://evil.example", True),
    ],
)
@asynchronous
async def test_web_pages(allowed: list[str], origin: bytes | None, gets_in: bool) -> None:
    from channels.testing import WebsocketCommunicator

    from amesh_django.relay.asgi import application

    async with relay(ALLOWED_ORIGINS=allowed) as world:
        headers = [(b"origin", origin)] if origin is not None else []
        communicator: Any = WebsocketCommunicator(application, "/ws", headers=headers)
        communicator.scope["client"] = ("192.0.2.1", 1)
        assert (await communicator.connect())[0] is gets_in
        if gets_in:
            await communicator.disconnect()
        else:
            assert world.hub.counts["refused:origin"] == 1
            await communicator.wait()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_bug_closes_one_connection_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with relay() as world:
        target, controller = await world.pair()

        async def broken(*args: object) -> None:
            raise RuntimeError("secret payload 482916")

        world.hub._handlers["data"] = broken
        with caplog.at_level(logging.DEBUG):
            await target.send("data", payload="secret payload")
        assert await target.closed() == 1011
        assert await controller.error() == "peer_disconnected"
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text
        assert OTC not in caplog.text


@asynchronous
async def test_a_bug_in_what_one_is_told_closes_that_one(caplog: pytest.LogCaptureFixture) -> None:
    async with relay() as world:
        target, controller = await world.pair()

        def broken(*args: object) -> bool:
            raise RuntimeError("secret payload")

        world.hub._listeners["data"] = broken
        await target.send("data", payload="secret payload")
        assert await controller.closed() == 1011
        assert await target.error() == "peer_disconnected"
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text


@pytest.mark.parametrize("early", [100, 101])
@asynchronous
async def test_what_happens_before_the_relay_has_answered(early: int) -> None:
    """With several processes and Redis, an event of the other side may arrive before the answer to one's own message."""
    async with relay() as world:
        target, controller = await world.client(), await world.client("192.0.2.2")
        exchange: Any = world.hub.exchange
        join, gate = exchange.join, asyncio.Event()

        async def slowly(code: str, me: Ref, address: str) -> Any:
            joined = await join(code, me, address)
            for count in range(early):
                frame = json.dumps({"type": "data", "payload": f"{count}"})
                world.hub.arrive(me.number, Event("data", joined.session, joined.peer, frame))
            await gate.wait()
            return joined

        exchange.join = slowly
        await target.send("listen", otc=OTC)
        assert (await target.receive())["type"] == "ack"
        await controller.send("connect", otc=OTC)
        assert await controller.hears_nothing()
        gate.set()
        assert await controller.receive() == await target.receive() == {"type": "peer_found"}
        if early > 100:  # more than can wait: something is lost, so it does not go on
            assert await controller.closed() == 1008
            assert await target.error() == "peer_disconnected"
            return
        for count in range(early):
            assert (await controller.receive())["payload"] == f"{count}"
        await controller.send("done")
        assert (await target.receive())["type"] == "done"


@asynchronous
async def test_an_exchange_that_cant_be_reached() -> None:
    async with relay() as world:
        client = await world.client()

        async def down(*args: object) -> None:
            raise Unavailable

        exchange: Any = world.hub.exchange
        exchange.open = exchange.join = exchange.watch = exchange.use = down
        await client.send("listen", otc=OTC)
        assert await client.error() == "relay_capacity"
        await client.send("connect", otc=OTC)
        assert await client.error() == "relay_capacity"
        await client.send("bootstrap_watch", jti="x")
        assert await client.error() == "relay_capacity"
        await client.send("bootstrap_init", jti="x", token="t", targetPubKey="k")
        assert await client.receive() == {"type": "bootstrap_reject", "error": "relay_capacity"}


class Slow:
    """A client whose server makes the relay wait."""

    def __init__(self, world: Relay) -> None:
        self.world = world
        self.taken: list[dict[str, Any]] = []
        self.reading = asyncio.Event()
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            await self.reading.wait()
        self.taken.append(message)


@pytest.mark.parametrize("too_much", [True, False])
@asynchronous
async def test_a_slow_reader_is_closed_and_nobody_waits_for_it(too_much: bool) -> None:
    from amesh_django.relay.consumer import RelayConsumer

    async with relay(MAX_UNSENT_BYTES=50_000) as world:
        slow = Slow(world)
        slow.inbox.put_nowait({"type": "websocket.connect"})
        slow.reading.set()
        scope = {"type": "websocket", "path": "/ws", "headers": [], "client": ("192.0.2.9", 1)}
        task = asyncio.ensure_future(RelayConsumer.as_asgi()(scope, slow.inbox.get, slow.send))  # type: ignore[arg-type]
        await settle()
        slow.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": "listen", "otc": OTC})})
        await settle()
        controller = await world.client()
        await controller.send("connect", otc=OTC)
        assert (await controller.receive())["type"] == "peer_found"
        slow.reading.clear()
        for _ in range(4):
            await controller.send("data", payload="x" * 10_000)
        assert world.hub._budget.used > 40_000
        assert await controller.hears_nothing()
        if too_much:
            await controller.send("data", payload="x" * 10_000)
        else:
            for _ in range(3):
                await world.passes(3.4)
                assert await controller.hears_nothing()
            await world.passes(3.4)
        assert await controller.error() == "peer_disconnected"
        assert slow.taken[-1] == {"type": "websocket.close", "code": 1008}
        assert world.hub._budget.used == 0
        slow.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await task


@asynchronous
async def test_who_is_closed_and_does_not_read_is_forgotten_as_well() -> None:
    """Messages sent before the close wait, and count, only for a while."""
    from amesh_django.relay.consumer import RelayConsumer

    async with relay() as world:
        slow = Slow(world)
        slow.inbox.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/ws", "headers": [], "client": ("192.0.2.9", 1)}
        task = asyncio.ensure_future(RelayConsumer.as_asgi()(scope, slow.inbox.get, slow.send))  # type: ignore[arg-type]
        for text in ("nonsense", "nonsense", "x" * 70_000):
            slow.inbox.put_nowait({"type": "websocket.receive", "text": text})
        await settle()
        assert not world.hub.sockets
        for _ in range(3):
            assert world.hub._budget.used > 0
            await world.passes(4)
        await world.passes(0)
        assert world.hub._budget.used == 0
        assert not world.hub._closing
        assert slow.taken[-1] == {"type": "websocket.close", "code": 1008}
        slow.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await task


@asynchronous
async def test_what_waits_for_all_together_is_bounded() -> None:
    from amesh_django.relay.hub.sockets import Budget, Socket

    budget = Budget(10_000)
    never = asyncio.Event()

    async def stuck(message: Any) -> None:
        await never.wait()

    sockets = [Socket(stuck, number=n, address="a", now=0, limit=1_000_000, budget=budget) for n in range(100)]
    taken = sum(socket.write("x" * 1000) for socket in sockets for _ in range(5))
    assert budget.used < 10_000 + 100 * 1100  # one message for each is always taken
    assert taken < 120
    for socket in sockets:
        socket.release()
    assert budget.used == 0
    await settle()


@asynchronous
async def test_a_server_that_does_not_know_the_code_of_a_close() -> None:
    """autobahn, as daphne uses it without :mod:`amesh_django.relay.server`."""
    from amesh_django.relay.hub.sockets import Budget, Socket

    codes = []

    async def send(message: Any) -> None:
        if message["code"] < 3000:
            raise Exception("invalid close code")
        codes.append(message["code"])

    Socket(send, number=1, address="a", now=0, limit=1, budget=Budget(1)).close(1013)
    await settle()
    assert codes == [4013]
