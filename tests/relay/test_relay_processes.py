"""One relay of several processes with a real Redis: pairings across processes, and the death of one of them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.relay.relay_world import (
    JTI,
    PATIENCE,
    ConnectionClosed,
    asynchronous,
    converse,
    dialled,
    match,
    serving,
    until,
)
from tests.support import services

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

Two = tuple[services.Server, services.Server]


@pytest.fixture(scope="module")
def two(redis_server: services.Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two processes without the usual limits."""
    folder = tmp_path_factory.mktemp("relay")
    with serving(folder, redis_server.url) as one, serving(folder, redis_server.url) as other:
        yield one, other


@contextmanager
def pair_of(folder: Path, redis: services.Redis, **limits: object) -> Iterator[Two]:
    with serving(folder, redis.url, **limits) as one, serving(folder, redis.url, **limits) as other:
        yield one, other


def sessions(server: services.Server) -> int:
    response = httpx.get(server.url + "/health", timeout=PATIENCE)
    count: int = response.json()["sessions"]
    return count if response.status_code == 200 else -1


async def no_sessions(*servers: services.Server) -> None:
    await until(lambda: not any(map(sessions, servers)))


@asynchronous
async def test_a_pairing_across(redis: services.Redis, two: Two) -> None:
    async with dialled(two[0]) as (here,), dialled(two[1]) as (there,):
        await converse(here, there, "200001")
        await converse(there, here, "200001")
        await match(here, there)
        assert sessions(two[0]) == sessions(two[1]) == 1
        await there.leave()
        assert await here.error() == "peer_disconnected"
        await no_sessions(*two)
    keys = redis.command("KEYS", "*s:*")
    assert keys == "*0"


@asynchronous
async def test_everything_arrives_once_and_in_order(two: Two) -> None:
    async with dialled(two[0]) as (here,), dialled(two[1]) as (there,):
        await match(here, there, "200002")

        async def talk(number: int) -> None:
            for count in range(250):
                await (here, there)[number].send("data", payload=f"{count} €\u2028" + "x" * (count % 5) * 1000)

        async def hear(number: int) -> None:
            for count in range(250):
                received = await (here, there)[number].receive()
                assert received["payload"] == f"{count} €\u2028" + "x" * (count % 5) * 1000

        async with asyncio.TaskGroup() as group:
            for number in (0, 1):
                group.create_task(talk(number))
                group.create_task(hear(number))
        await there.send("done")
        assert await here.receive() == {"type": "done"}


@asynchronous
async def test_a_token_across(two: Two) -> None:
    async with dialled(two[0]) as (controller,), dialled(two[1], 2) as (target, second):
        await controller.send("bootstrap_watch", jti=JTI)
        await controller.receive()
        await second.send("bootstrap_watch", jti=JTI)
        assert await second.error() == "jti_already_watched"
        await target.send("bootstrap_init", jti=JTI, targetPubKey="k", proof="p", targetSig="s")
        assert (await controller.receive())["type"] == "bootstrap_init"
        await second.send("bootstrap_init", jti=JTI, targetPubKey="k", proof="p", targetSig="s")
        assert (await second.receive())["error"] == "token_already_used"
        await second.send("bootstrap_ack", jti=JTI, publicKey="E", controllerSig="E")
        assert await second.error() == "invalid_jti"
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert (await target.receive())["controllerSig"] == "S"

        await controller.send("bootstrap_watch", jti="bt_2")
        await controller.receive()
        await target.send("bootstrap_init", jti="bt_2", targetPubKey="k", proof="p", targetSig="s")
        await controller.receive()
        await controller.leave()
        assert await target.error() == "peer_disconnected"


@asynchronous
async def test_limits_hold_for_all_together(redis: services.Redis, tmp_path: Path) -> None:
    with pair_of(tmp_path, redis, TRIES_PER_MINUTE=5, TRIES_PER_CODE=3, MAX_SESSION_BYTES=20_000) as (one, other):
        async with dialled(one) as (here,), dialled(other) as (there,):
            await match(here, there, "200003")
            for sender, receiver in ((here, there), (there, here), (here, there)):
                await sender.send("data", payload="x" * 5000)
                await receiver.receive()
            await there.send("data", payload="x" * 5000)
            assert await there.error() == await here.error() == "session_data_limit"
            await no_sessions(one, other)
            for client in (here, there, here):
                await client.send("connect", otc="200004")
                assert await client.error() == "otc_not_found"
            for client in (here, there):
                await client.send("listen", otc="200005")
                assert await client.error() == "rate_limited"
        redis.command("DEL", "{amesh-relay}:t:127.0.0.1")
        async with dialled(other) as (there,):
            await there.send("listen", otc="200004")
            assert await there.error() == "otc_in_use"


@asynchronous
async def test_connections_are_counted_together(redis: services.Redis, tmp_path: Path) -> None:
    with pair_of(tmp_path, redis, MAX_CONNECTIONS=4) as (one, other):
        async with dialled(one, 2) as here, dialled(other, 2) as (leaving, staying):
            # The handshake ends before a connection counts; its first answer comes after that.
            for client in (*here, leaving, staying):
                await client.send("nonsense")
                assert await client.error() == "unknown_type"
            # What one process holds gets around within a second or so.
            while await lets_in(one):
                pass
            await leaving.leave()
            while not await lets_in(one):
                pass


async def lets_in(server: services.Server) -> bool:
    """Return True if there is room for one more connection."""
    async with dialled(server) as (late,):
        try:
            await late.send("nonsense")
            assert await late.error() == "unknown_type"
        except ConnectionClosed:
            assert late.connection.close_code == 1013
            return False
        return True


@asynchronous
async def test_a_process_is_killed_in_mid_pairing(redis: services.Redis, tmp_path: Path) -> None:
    with pair_of(tmp_path, redis) as (one, other):
        async with dialled(one, 3) as (here, waiting, watching), dialled(other, 4) as (there, next_, target, silent):
            await match(here, there, "200006")
            await match(waiting, silent, "200016")
            await waiting.send("done")
            await silent.receive()
            await waiting.send("listen", otc="200007")
            await waiting.receive()
            await watching.send("bootstrap_watch", jti=JTI)
            await watching.receive()
            one.stop(signal.SIGKILL)
            await here.closed()
            assert await there.error() == "peer_disconnected"  # without having said a word
            await next_.send("connect", otc="200007")
            assert await next_.error() == "otc_not_found"
            await target.send("bootstrap_init", jti=JTI, targetPubKey="k", proof="p", targetSig="s")
            assert (await target.receive())["error"] == "no_watcher"
            await no_sessions(other)


@asynchronous
async def test_a_process_is_killed_and_the_other_side_speaks(redis: services.Redis, tmp_path: Path) -> None:
    with pair_of(tmp_path, redis) as (one, other):
        async with dialled(one) as (here,), dialled(other) as (there,):
            await match(here, there, "200008")
            one.stop(signal.SIGKILL)
            await there.send("data", payload="anybody there?")
            assert await there.error() == "peer_disconnected"


@asynchronous
async def test_redis_is_restarted_in_mid_pairing(redis: services.Redis, tmp_path: Path) -> None:
    with pair_of(tmp_path, redis) as (one, other):
        async with (
            dialled(one, 5) as (here, waiting, local_target, local_controller, watcher),
            dialled(other, 2) as (there, target),
        ):
            await match(here, there, "200009")
            await match(local_target, local_controller, "200010")
            await waiting.send("listen", otc="200011")
            await waiting.receive()
            await watcher.send("bootstrap_watch", jti=JTI)
            await watcher.receive()
            with redis.down():
                # Who has lost the other side is told; who has both sides in one process goes on.
                assert await here.error() == await there.error() == "peer_disconnected"
                await local_target.send("data", payload="still here")
                assert (await local_controller.receive())["payload"] == "still here"
                await there.send("listen", otc="200012")
                assert await there.error() == "relay_capacity"
                assert httpx.get(other.url + "/health").status_code == 503
            await until(lambda: sessions(one) == sessions(other) == 1)
            # Who was waiting still waits, who watched still watches.
            await there.send("connect", otc="200011")
            assert await there.receive() == await waiting.receive() == {"type": "peer_found"}
            came, answer = asyncio.ensure_future(watcher.receive()), None
            while not came.done():  # the watch comes back a moment after the session
                await target.send("bootstrap_init", jti=JTI, targetPubKey="k", proof="p", targetSig="s")
                answer = asyncio.ensure_future(target.receive())
                await asyncio.wait({came, answer}, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    assert answer.result()["error"] == "no_watcher"
                    await asyncio.sleep(0.1)
            assert came.result()["type"] == "bootstrap_init"
            assert answer is not None
            answer.cancel()
            await local_controller.send("done")
            assert await local_target.receive() == {"type": "done"}
        for server in (one, other):
            assert "Cannot reach Redis" in server.output()
            assert "Redis can be reached again." in server.output()
            assert "2000" not in server.output()
            assert "Traceback" not in server.output()


@asynchronous
async def test_redis_loses_a_connection(redis: services.Redis, tmp_path: Path) -> None:
    """Redis and the processes live on. The clients are told, because events may have been lost."""
    with pair_of(tmp_path, redis) as (one, other):
        async with dialled(one) as (here,), dialled(other) as (there,):
            await match(here, there, "200013")
            redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            assert await here.error() == await there.error() == "peer_disconnected"
            await no_sessions(one, other)
            await converse(here, there, "200014")


@asynchronous
async def test_a_hundred_pairings_at_once_across(redis: services.Redis, two: Two) -> None:
    """With an empty Redis: processes that earlier tests stopped may have left a session that has not expired yet."""

    async def pairing(number: int) -> None:
        async with dialled(two[number % 2]) as (target,), dialled(two[(number // 2) % 2]) as (controller,):
            await converse(target, controller, str(300_000 + number))

    await asyncio.gather(*(pairing(number) for number in range(100)))
    await no_sessions(*two)
