"""The exchange: the same answers in memory and in Redis; and what only Redis can do, or lose."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis import Redis as SyncRedis

from amesh_django.relay.conf import RelaySettings
from amesh_django.relay.exchange.base import Event, Exchange, Joined, Ref, Unavailable
from amesh_django.relay.exchange.memory import Expiring, MemoryExchange
from amesh_django.relay.exchange.parcels import pack
from amesh_django.relay.exchange.redis import RedisExchange
from tests.relay.relay_world import PATIENCE, Clock, asynchronous, until
from tests.support import services

pytestmark = pytest.mark.unversioned

A, B = "192.0.2.1", "192.0.2.2"


class Local:
    """A process that only records the calls of its exchange."""

    def __init__(self, connections: int = 0, remote: set[str] | None = None) -> None:
        self.events: list[tuple[int, Event]] = []
        self.told: list[object] = []
        self.connections = connections
        self.remote = remote or set()

    def arrive(self, number: int, event: Event) -> None:
        self.events.append((number, event))

    def connection_count(self) -> int:
        return self.connections

    def remote_processes(self) -> set[str]:
        return self.remote

    async def on_loss(self) -> None:
        self.told.append("loss")

    async def on_return(self) -> None:
        self.told.append("return")

    async def on_gone(self, processes: set[str]) -> None:
        self.told.append(processes)


Make = Callable[..., Exchange]
#: Makes all that a Redis holds older. Redis has its own clock, by which keys end and the scripts of the relay count.
OLDER = """
for _, key in ipairs(redis.call('KEYS', '*')) do
    local left = redis.call('PTTL', key)
    if redis.call('TYPE', key).ok == 'zset' then
        for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ARGV[1], member) end
    end
    if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
end
return 1
"""


@dataclass
class Kind:
    """A kind of exchange: how to make one, and how to let a moment pass."""

    make: Make
    pass_seconds: Callable[[int], None]
    #: Seconds: long enough for what is to happen within it, on a machine that has much else to do.
    moment: int = 60

    async def passes(self) -> None:
        self.pass_seconds(self.moment)


@pytest.fixture(params=["memory", "redis"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Makes exchanges; those in Redis belong to one relay."""
    if request.param == "memory":
        clock = Clock()
        return Kind(lambda **settings: MemoryExchange(RelaySettings(**settings), clock), clock.advance)
    redis = request.getfixturevalue("redis")

    def pass_seconds(seconds: int) -> None:
        assert redis.command("EVAL", OLDER, "0", str(1000 * seconds)) == ":1"

    return Kind(lambda **settings: RedisExchange(RelaySettings(**settings), redis.url), pass_seconds)


@pytest.fixture
def make(kind: Kind) -> Make:
    return kind.make


@asynccontextmanager
async def running(exchange: Exchange, local: Local | None = None) -> AsyncIterator[Exchange]:
    exchange.start(local or Local())
    try:
        yield exchange
    finally:
        await exchange.stop()


def fresh() -> tuple[str, str]:
    return str(100_000 + secrets.randbelow(900_000)), secrets.token_hex(8)


@pytest.mark.process
@asynchronous
async def test_a_session(make: Make) -> None:
    async with running(make()) as exchange:
        code, name = fresh()
        target, controller = Ref(exchange.process, 1), Ref(exchange.process, 2)
        assert await exchange.join(code, controller, B) == "otc_not_found"
        assert await exchange.open(code, name, target, A) is None
        assert await exchange.open(code, "other", target, A) == "otc_in_use"
        assert await exchange.sessions() == 1
        assert await exchange.join(code, controller, B) == Joined(name, target)
        assert await exchange.join(code, controller, B) == "peer_already_connected"
        assert await exchange.open(code, "other", target, A) == "otc_in_use"
        await exchange.end(code, "another session")
        assert await exchange.sessions() == 1
        await exchange.end(code, name)
        await exchange.end(code, name)
        assert await exchange.sessions() == 0
        assert await exchange.open(code, "next", target, A) is None


@asynchronous
async def test_sessions_expire(kind: Kind) -> None:
    settings = {"MATCH_SECONDS": kind.moment, "FINISH_SECONDS": kind.moment, "TRIES_PER_MINUTE": 100}
    async with running(kind.make(**settings)) as exchange:
        me = Ref(exchange.process, 1)
        for matched in (False, True):
            code, name = fresh()
            assert await exchange.open(code, name, me, A) is None
            if matched:
                assert isinstance(await exchange.join(code, me, A), Joined)
            await kind.passes()
            assert await exchange.join(code, me, A) == "otc_not_found"
            assert await exchange.open(code, "next", me, A) is None
            await exchange.end(code, name)


@asynchronous
async def test_tries(make: Make) -> None:
    async with running(make()) as exchange:
        me = Ref(exchange.process, 1)
        for number in range(5):
            assert await exchange.join(f"20000{number}", me, A) == "otc_not_found"
        assert await exchange.join("200009", me, A) == "rate_limited"
        assert await exchange.open("200009", "x", me, A) == "rate_limited"
        assert await exchange.open("200009", "x", me, B) is None


@asynchronous
async def test_burnt_codes(kind: Kind) -> None:
    async with running(kind.make(TRIES_PER_CODE=2, BURNT_SECONDS=kind.moment, TRIES_PER_MINUTE=100)) as exchange:
        me = Ref(exchange.process, 1)
        for _ in range(2):
            assert await exchange.join("300000", me, A) == "otc_not_found"
        assert await exchange.open("300000", "x", me, B) == "otc_in_use"
        await kind.passes()
        assert await exchange.open("300000", "x", me, B) is None


@asynchronous
async def test_capacity(make: Make) -> None:
    async with running(make(MAX_SESSIONS=2)) as exchange:
        me = Ref(exchange.process, 1)
        assert await exchange.open("400001", "a", me, A) is None
        assert await exchange.open("400002", "b", me, A) is None
        assert await exchange.open("400003", "c", me, A) == "relay_capacity"
        await exchange.end("400001", "a")
        assert await exchange.open("400003", "c", me, A) is None
        assert await exchange.watch("a", me, A) is None
        assert await exchange.watch("b", me, A) is None
        assert await exchange.watch("c", me, A) == "relay_capacity"
        await exchange.unwatch("a", me)
        assert await exchange.watch("c", me, A) is None


@asynchronous
async def test_tokens(make: Make) -> None:
    async with running(make(WATCHES_PER_MINUTE=4)) as exchange:
        me, other = Ref(exchange.process, 1), Ref(exchange.process, 2)
        assert await exchange.use("jti", B) == "no_watcher"
        assert await exchange.watch("jti", me, A) is None
        assert await exchange.watch("jti", me, A) is None
        assert await exchange.watch("jti", other, A) == "jti_already_watched"
        await exchange.unwatch("jti", other)
        assert await exchange.use("jti", B) == me
        assert await exchange.use("jti", B) == "token_already_used"
        await exchange.unuse("jti")
        assert await exchange.use("jti", B) == me
        await exchange.unwatch("jti", me)
        assert await exchange.use("jti", B) == "token_already_used"
        assert await exchange.watch("more", me, A) is None
        assert await exchange.watch("too many", me, A) == "rate_limited"
        assert await exchange.watch("more", other, B) == "jti_already_watched"


@asynchronous
async def test_watches_expire(kind: Kind) -> None:
    async with running(kind.make(WATCH_SECONDS=kind.moment, USED_TOKEN_SECONDS=kind.moment)) as exchange:
        me, other = Ref(exchange.process, 1), Ref(exchange.process, 2)
        assert await exchange.watch("jti", me, A) is None
        await kind.passes()
        assert await exchange.use("jti", B) == "no_watcher"
        assert await exchange.watch("jti", other, A) is None
        assert await exchange.use("jti", B) == other
        assert await exchange.use("jti", B) == "token_already_used"
        await kind.passes()
        assert await exchange.use("jti", B) == "no_watcher"


@asynchronous
async def test_used_tokens_are_bounded(kind: Kind) -> None:
    settings = {"MAX_USED_TOKENS": 2, "USED_TOKEN_SECONDS": kind.moment, "WATCH_SECONDS": 1000}
    async with running(kind.make(**settings)) as exchange:
        me = Ref(exchange.process, 1)
        for jti in ("a", "b", "c"):
            assert await exchange.watch(jti, me, A) is None
        assert await exchange.use("a", B) == me
        assert await exchange.use("b", B) == me
        assert await exchange.use("c", B) == "relay_capacity"
        assert await exchange.use("a", B) == "token_already_used"
        await exchange.unuse("b")
        assert await exchange.use("c", B) == me
        await kind.passes()
        assert await exchange.use("b", B) == me


# --- the shares of an IPv6 /48, whose owner has 65,536 addresses -------------------------------------------------------


def address_of(number: int, site: int = 1) -> str:
    """Return an address, a /64, of a /48."""
    return f"2001:db8:{site:x}:{number:x}::/64"


def one_address(number: int) -> str:
    """Return the IPv4 address whose tokens, sessions and watches are those of one network, like those of a /48."""
    return A


@pytest.mark.parametrize("question", ["open", "join", "watch", "use"])
@asynchronous
async def test_a_network_counts_as_some_addresses(make: Make, question: str) -> None:
    limits = {"TRIES_PER_MINUTE": 2, "WATCHES_PER_MINUTE": 2, "TOKENS_PER_MINUTE": 2, "ADDRESSES_PER_NETWORK": 3}
    async with running(make(**limits)) as exchange:
        me = Ref(exchange.process, 1)

        async def tries(address: str) -> bool:
            """Return True if the relay looks at one more try."""
            code, name = fresh()
            match question:
                case "open":
                    answer: object = await exchange.open(code, name, me, address)
                case "join":
                    answer = await exchange.join(code, me, address)
                case "watch":
                    answer = await exchange.watch(name, me, address)
                case _:
                    answer = await exchange.use(name, address)
            return answer != "rate_limited"

        async def count(address: str, times: int = 3) -> int:
            return sum([await tries(address) for _ in range(times)])

        assert (
            await count(address_of(0), 20) == 2
        )  # what is one too many for the address does not count for its neighbors
        assert [await count(address_of(number)) for number in (1, 2, 3, 4)] == [2, 2, 0, 0]
        assert await count(address_of(1, site=2)) == 2
        assert await count(A) == 2
        assert await count(B) == 2


@pytest.mark.parametrize("place", [address_of, one_address])
@asynchronous
async def test_sessions_and_watches_of_a_network(kind: Kind, place: Callable[[int], str]) -> None:
    limits = {
        "TRIES_PER_MINUTE": 100,
        "SESSIONS_PER_NETWORK": 2,
        "MATCH_SECONDS": kind.moment,
        "WATCHES_PER_MINUTE": 100,
    }
    async with running(kind.make(**limits, WATCH_SECONDS=kind.moment)) as exchange:
        me = Ref(exchange.process, 1)
        for number in range(2):
            assert await exchange.open(f"90000{number}", f"{number}", me, place(number)) is None
            assert await exchange.watch(f"{number}", me, place(number)) is None
        assert await exchange.open("900002", "2", me, place(2)) == "rate_limited"
        assert await exchange.watch("2", me, place(2)) == "rate_limited"
        assert await exchange.watch("1", me, place(1)) is None  # a renewal
        for other in (B, address_of(0, site=2)):
            code, name = fresh()
            assert await exchange.open(code, name, me, other) is None
            assert await exchange.watch(name, me, other) is None
        await exchange.end("900000", "0")
        await exchange.unwatch("0", me)
        assert await exchange.open("900002", "2", me, place(2)) is None
        assert await exchange.watch("2", me, place(2)) is None
        assert await exchange.open("900003", "3", me, place(3)) == "rate_limited"
        assert await exchange.watch("3", me, place(3)) == "rate_limited"
        assert isinstance(await exchange.join("900001", me, B), Joined)
        await kind.passes()
        await exchange.end("900002", "2")  # the hub ends it, as its time is up
        assert await exchange.open("900003", "3", me, place(3)) is None
        assert await exchange.open("900004", "4", me, place(4)) == "rate_limited"  # the matched one still counts
        assert await exchange.watch("3", me, place(3)) is None


@pytest.mark.parametrize("place", [address_of, one_address])
@asynchronous
async def test_used_tokens_of_a_network(make: Make, place: Callable[[int], str]) -> None:
    """No network can fill the memory for used tokens, which would make the relay reject all tokens for 25 hours."""
    limits = {"MAX_USED_TOKENS": 4, "USED_TOKENS_PER_NETWORK": 2, "WATCHES_PER_MINUTE": 100}
    async with running(make(**limits)) as exchange:
        me = Ref(exchange.process, 1)

        async def use(jti: str, address: str) -> Ref | str:
            assert await exchange.watch(jti, me, B) is None
            await asyncio.sleep(0.002)  # the oldest of two is the one of an earlier millisecond
            return await exchange.use(jti, address)

        assert await use("of another", B) == me
        for number in range(6):
            assert await use(f"{number}", place(number)) == me
        assert await use("of a third", "192.0.2.3") == me
        assert [await use(f"{number}", B) for number in (4, 5)] == ["token_already_used"] * 2
        assert await use("of another", B) == "token_already_used"
        # What was freed does not count, neither in all nor for its network.
        await exchange.unuse("4")
        assert await use("6", place(6)) == me
        assert await use("5", B) == "token_already_used"
        await exchange.unuse("6")
        assert await use("0", B) == me
        assert await use("7", "192.0.2.4") == "relay_capacity"


@asynchronous
async def test_redis_keeps_nothing_about_a_network_forever(redis: services.Redis) -> None:
    limits = {"SESSIONS_PER_NETWORK": 1, "USED_TOKENS_PER_NETWORK": 1, "REDIS_PREFIX": "forever"}
    async with running(RedisExchange(RelaySettings(**limits), redis.url)) as exchange:
        me = Ref(exchange.process, 1)
        for number in range(3):
            await exchange.open(f"91000{number}", f"{number}", me, A)
            await exchange.watch(f"{number}", me, A)
            await exchange.use(f"{number}", A)
            await exchange.end(f"91000{number}", f"{number}")
            await exchange.unwatch(f"{number}", me)
        await exchange.open("910004", "4", me, A)
        await exchange.open("910005", "5", me, A)
        with SyncRedis(host=services.HOST, port=redis.port) as client:
            names = {
                name.decode()
                for name in client.scan_iter("{forever}:*")
                if name.decode()[-2:] not in (":n", ":v", ":p")
            }
            assert {name.split(":")[1] for name in names} >= set("tTaAiInvuo")
            assert {name for name in names if client.pttl(name) < 0} == set()


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_memory_keeps_is_bounded() -> None:
    clock = Clock()
    kept: Expiring[int] = Expiring(60, clock, capacity=1000)
    for number in range(5000):
        kept.put(f"{number}", number)
        clock.now += 0.001
    assert len(kept) == 1000
    assert kept.get("3999") is None
    assert kept.get("4000") == 4000
    clock.now += 57
    kept.put("4000", 1)
    clock.now += 3
    assert len(kept) == 1
    clock.now += 57
    assert (len(kept), kept.get("4000")) == (0, None)


# --- Redis ------------------------------------------------------------------------------------------------------------


@asynchronous
async def test_two_processes_are_one_relay(redis: services.Redis) -> None:
    settings = RelaySettings()
    here, there = Local(), Local()
    async with (
        running(RedisExchange(settings, redis.url), here) as one,
        running(RedisExchange(settings, redis.url), there) as two,
    ):
        target, controller = Ref(one.process, 7), Ref(two.process, 8)
        assert await one.open("500000", "name", target, A) is None
        assert await two.open("500000", "other", controller, B) == "otc_in_use"
        assert await two.join("500000", controller, B) == Joined("name", target)
        assert await one.sessions() == await two.sessions() == 1
        for number in range(2, 5):
            assert await one.join(f"50000{number}", target, B) == "otc_not_found"
        assert await one.join("500009", target, B) == "rate_limited"
        # Many events in a row arrive once and in order, whatever is in them.
        frames = [f"{number} \x00 \ud800 € {'x' * (number % 7) * 20_000}" for number in range(300)]
        sent = await asyncio.gather(*(two.send(target, Event("data", "name", controller, frame)) for frame in frames))
        assert all(sent)
        await until(lambda: len(here.events) == 300)
        assert here.events == [(7, Event("data", "name", controller, frame)) for frame in frames]
        assert not there.events
        assert await two.send(Ref("nobody", 1), Event("left", "name", controller)) is False


@asynchronous
async def test_processes_count_their_connections_together(redis: services.Redis) -> None:
    settings = RelaySettings()
    async with (
        running(RedisExchange(settings, redis.url), Local(connections=3)) as one,
        running(RedisExchange(settings, redis.url), Local(connections=4)) as two,
    ):
        async with asyncio.timeout(PATIENCE):
            while (one.others, two.others) != (4, 3):
                await asyncio.sleep(0.05)
                await one.refresh()
                await two.refresh()


@asynchronous
async def test_a_process_that_dies_is_noticed(redis: services.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amesh_django.relay.exchange.redis._BEAT_SECONDS", 0.1)
    settings = RelaySettings()
    local = Local()
    two = RedisExchange(settings, redis.url)
    async with running(RedisExchange(settings, redis.url), local) as one:
        two.start(Local())
        assert await two.watch("jti", Ref(two.process, 1), A) is None
        local.remote = {two.process}
        await asyncio.sleep(0.5)
        assert not local.told
        await two.stop()
        await until(lambda: {two.process} in local.told)
        # Its watch holds until it is known to be dead for sure.
        assert await one.watch("jti", Ref(one.process, 1), A) == "jti_already_watched"
        redis.command("HDEL", "{amesh-relay}:p", two.process)
        assert await one.watch("jti", Ref(one.process, 1), A) is None


@asynchronous
async def test_a_bug_does_not_stop_the_beats(
    redis: services.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("amesh_django.relay.exchange.redis._BEAT_SECONDS", 0.1)
    local = Local(remote={"somebody who is gone"})

    async def broken(processes: set[str]) -> None:
        raise RuntimeError("secret")

    local.on_gone = broken  # type: ignore[method-assign]
    async with running(RedisExchange(RelaySettings(), redis.url), local):
        await until(lambda: caplog.text.count("RuntimeError") > 1)
    assert "secret" not in caplog.text


@asynchronous
async def test_redis_goes_and_comes_back(redis: services.Redis, caplog: pytest.LogCaptureFixture) -> None:
    local = Local()
    async with running(RedisExchange(RelaySettings(), redis.url), local) as exchange:
        me = Ref(exchange.process, 1)
        assert await exchange.open("600000", "kept", me, A) is None
        with caplog.at_level(logging.INFO, "amesh_django.relay"):
            with redis.down():
                await until(lambda: local.told == ["loss"])
                started = time.monotonic()
                for asked in (
                    exchange.open("600001", "x", me, A),
                    exchange.sessions(),
                    exchange.send(Ref("x", 1), Event("data", "x", me, "frame")),
                ):
                    with pytest.raises(Unavailable):
                        await asked
                await exchange.refresh()
                assert time.monotonic() - started < 10
            await until(lambda: local.told == ["loss", "return"])
        assert await exchange.sessions() == 0
        assert await exchange.open("600002", "thief", me, B) is None
        restored = [("600000", "kept", me, 30.0), ("600002", "late", me, 30.0)]
        assert await exchange.restore_sessions(restored) == ["late"]
        assert await exchange.restore_sessions(restored) == ["late"]
        await exchange.restore_watches([("jti", me, 30.0)])
        assert await exchange.use("jti", B) == me
        assert await exchange.sessions() == 2
        words = [record.getMessage() for record in caplog.records]
        assert "Cannot reach Redis" in words[0] and "Check REDIS_URL" in words[0]
        assert words[-1] == "Redis can be reached again."
        assert not any(redis.url in text for text in words)


@asynchronous
async def test_scripts_that_redis_has_forgotten(redis: services.Redis) -> None:
    async with running(RedisExchange(RelaySettings(), redis.url)) as exchange:
        assert await exchange.sessions() == 0
        redis.command("SCRIPT", "FLUSH")
        assert await exchange.open("700000", "x", Ref(exchange.process, 1), A) is None


@asynchronous
async def test_redis_that_is_full(redis: services.Redis, caplog: pytest.LogCaptureFixture) -> None:
    async with running(RedisExchange(RelaySettings(), redis.url)) as exchange:
        assert await exchange.sessions() == 0
        redis.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(Unavailable):
                await exchange.open("700000", "x", Ref(exchange.process, 1), A)
        finally:
            redis.command("CONFIG", "SET", "maxmemory", "0")
        assert "with free memory" in caplog.text
        assert "700000" not in caplog.text
        assert await exchange.open("700000", "x", Ref(exchange.process, 1), A) is None


@asynchronous
async def test_redis_that_is_full_from_the_start(
    redis: services.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay connects less and less often, and the log is not flooded."""
    monkeypatch.setattr("amesh_django.relay.exchange.redis_link._PAUSES", (0.01, 0.01, 1000.0))
    redis.command("CONFIG", "SET", "maxmemory", "1")
    local = Local()
    try:
        async with running(RedisExchange(RelaySettings(), redis.url), local):
            await until(lambda: len(local.told) >= 3)
            await asyncio.sleep(0.2)
            assert local.told == ["loss"] * 3
            assert caplog.text.count("with free memory") == 1
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")


@asynccontextmanager
async def between(redis: services.Redis, on_sent: Callable[[bytes, asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """Run a proxy in front of Redis, and yield its address. After it forwards data, it calls *on_sent* with the data and the way back."""
    served: list[Any] = []

    async def carry(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                if back is not None:
                    on_sent(data, back)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        back, forth = await asyncio.open_connection(services.HOST, redis.port)
        answers = asyncio.ensure_future(carry(back, writer, None))
        await carry(reader, forth, writer)
        forth.close()
        await answers
        writer.close()
        with contextlib.suppress(OSError):
            await forth.wait_closed()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, services.HOST, 0) as middle:
        yield f"redis://{services.HOST}:{middle.sockets[0].getsockname()[1]}/0"
        await asyncio.gather(*served)


@asynchronous
async def test_a_connection_that_is_cut_without_a_word(redis: services.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall between a relay and its Redis forgets the connection for events."""
    monkeypatch.setattr("amesh_django.relay.exchange.redis_link._PING_SECONDS", 0.2)
    deaf: list[asyncio.StreamWriter] = []

    def on_sent(data: bytes, back: asyncio.StreamWriter) -> None:
        if b"SUBSCRIBE" in data:
            deaf.append(back)

    async with between(redis, on_sent) as url:
        local, settings = Local(), RelaySettings()
        async with (
            running(RedisExchange(settings, url), local) as here,
            running(RedisExchange(settings, redis.url)) as there,
        ):

            async def hears() -> None:
                before = len(local.events)
                async with asyncio.timeout(PATIENCE):
                    while len(local.events) == before:
                        await there.send(Ref(here.process, 1), Event("left", "x", Ref(there.process, 1)))
                        await asyncio.sleep(0.05)

            assert await here.sessions() == 0
            await hears()
            deaf[-1].close()
            await hears()
            await until(lambda: local.told[-2:] == ["loss", "return"])


@asynchronous
async def test_nothing_is_sent_twice(redis: services.Redis) -> None:
    """A command whose reply is lost is not repeated, neither by this package nor by redis-py."""
    cut = False

    def on_sent(data: bytes, back: asyncio.StreamWriter) -> None:
        if cut and b"EVALSHA" in data and b":t:" in data:
            back.transport.abort()

    async with between(redis, on_sent) as url:
        local = Local()
        async with running(RedisExchange(RelaySettings(), url), local) as exchange:
            assert await exchange.sessions() == 0
            cut = True
            with pytest.raises(Unavailable):
                await exchange.open("700001", "x", Ref(exchange.process, 1), A)
            await until(lambda: local.told == ["loss", "return"])
            cut = False
            assert redis.command("INCR", f"{{amesh-relay}}:t:{A}") == ":2"
            assert await exchange.sessions() == 1


@pytest.mark.parametrize("kind_of_client", ["normal", "pubsub"])
@asynchronous
async def test_both_connections_die_together(redis: services.Redis, kind_of_client: str) -> None:
    """Without the guard, redis-py would reconnect either of them, and the loss would go unnoticed."""
    local = Local()
    async with running(RedisExchange(RelaySettings(), redis.url), local) as exchange:
        assert await exchange.sessions() == 0
        before = clients(redis)
        redis.command("CLIENT", "KILL", "TYPE", kind_of_client)
        await asyncio.sleep(0.2)  # the end of the connection has arrived before the next command is sent
        with contextlib.suppress(Unavailable):
            await exchange.sessions()
        await until(lambda: local.told == ["loss", "return"])
        assert await exchange.sessions() == 0
        assert not before & clients(redis)


def clients(redis: services.Redis) -> set[str]:
    """Return the numbers that Redis has given to the connections of relays."""
    with SyncRedis(host=services.HOST, port=redis.port) as client:
        mine = str(client.client_id())
        return {found["id"] for found in client.client_list()} - {mine}


@asynchronous
async def test_what_is_no_event(redis: services.Redis, caplog: pytest.LogCaptureFixture) -> None:
    local = Local()
    async with running(RedisExchange(RelaySettings(), redis.url), local) as exchange:
        assert await exchange.sessions() == 0
        for text in ("nonsense", "7", "[7]", "[[1,2]]"):
            redis.command("PUBLISH", f"{{amesh-relay}}:inbox:{exchange.process}", text)
        assert await exchange.send(Ref(exchange.process, 3), Event("left", "x", Ref("y", 1)))
        await until(lambda: len(local.events) == 1)
        assert caplog.text.count("REDIS_PREFIX") == 4


@asynchronous
async def test_two_relays_in_one_redis(redis: services.Redis) -> None:
    async with (
        running(RedisExchange(RelaySettings(REDIS_PREFIX="one"), redis.url)) as one,
        running(RedisExchange(RelaySettings(REDIS_PREFIX="two"), redis.url)) as two,
    ):
        assert await one.open("800000", "x", Ref(one.process, 1), A) is None
        assert await two.join("800000", Ref(two.process, 1), A) == "otc_not_found"


@asynchronous
async def test_redis_that_never_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amesh_django.relay.exchange.redis_link._START_PATIENCE", 0.2)
    exchange = RedisExchange(RelaySettings(), f"redis://127.0.0.1:{services.free_port()}/0")
    async with running(exchange):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await exchange.sessions()
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("url", ["http://secret@x", "redis://:secret@host:port:x/0", "redis://host/0?protocol=3"])
def test_what_is_no_address_of_redis(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        RedisExchange(RelaySettings(), url)
    assert "REDIS_URL" in str(caught.value)
    assert "secret" not in str(caught.value)


@asynchronous
async def test_events_for_one_process_go_together() -> None:
    future: Any = asyncio.get_running_loop().create_future()
    sender = Ref("me", 1)

    def mail(process: str, size: int) -> tuple[Ref, Event, Any]:
        return Ref(process, 2), Event("data", "x", sender, "x" * size), future

    parcels = pack([mail("a", 0), mail("b", 5), mail("a", 200_000), mail("a", 100_000), mail("a", 1)])
    assert [(process, len(futures)) for process, _, futures in parcels] == [("a", 2), ("b", 1), ("a", 2)]
    assert pack([]) == []
