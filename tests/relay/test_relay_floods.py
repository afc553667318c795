"""Floods: whatever clients do, the memory of a relay stays bounded and others are served."""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.relay.relay_world import Raw, asynchronous, converse, dialled, match, memory, serving
from tests.relay.test_relay_server import UPGRADE
from tests.support import services

pytestmark = [pytest.mark.process, pytest.mark.unversioned]

#: What a relay may grow by, in MB, whatever is done to it here.
GROWTH = 120.0


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    """Raise the limit of open files as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def frame(text: str | bytes, opcode: int = 1) -> bytes:
    """Return a masked frame."""
    data = text.encode() if isinstance(text, str) else text
    if len(data) < 126:
        head = bytes([0x80 | opcode, 0x80 | len(data)])
    else:
        head = bytes([0x80 | opcode, 0xFE]) + struct.pack("!H", len(data))
    return head + b"\0\0\0\0" + data


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def opened(server: services.Server, upgrade: bool = True) -> Streams:
    reader, writer = await asyncio.open_connection(services.HOST, server.port, limit=2**14)
    if upgrade:
        writer.write(UPGRADE.encode())
        try:
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        except BaseException:
            writer.transport.abort()
            raise
    return reader, writer


def shut(*connections: Streams) -> None:
    for _, writer in connections:
        writer.transport.abort()


async def still_serves(server: services.Server, otc: str = "999999") -> None:
    async with dialled(server, 2) as (target, controller):
        await converse(target, controller, otc)


@asynchronous
async def test_pings(tmp_path: Path) -> None:
    """A flood of pings or pongs made others wait for more than a second. Nothing else counts them."""
    with serving(tmp_path) as server:
        for opcode in (9, 10):
            reader, writer = await opened(server)
            writer.write(frame(b"", opcode) * 60)
            await asyncio.sleep(0.1)
            writer.write(frame('{"type":"x"}'))
            assert b"unknown_type" in await asyncio.wait_for(reader.readuntil(b"}"), 5)
            writer.write(frame(b"", opcode) * 200)
            assert await asyncio.wait_for(reader.read(100), 5) == b"\x88\x02\x03\xf0"  # 1008, and no pong
            shut((reader, writer))
        await still_serves(server)


@asynchronous
async def test_idle_connections(tmp_path: Path) -> None:
    """Each takes less than 45 kB, so that 5,000 of them fit into 300 MB. The benchmark measures that many."""
    with serving(tmp_path) as server:
        before = memory(server)
        connections = [await opened(server) for _ in range(1500)]
        assert memory(server) < before + 1500 * 45 / 1000
        await still_serves(server)
        shut(*connections)


@asynchronous
async def test_half_open(tmp_path: Path) -> None:
    """Clients connect, and send nothing, or half a request byte by byte."""
    with serving(tmp_path, request_seconds=3, MAX_CONNECTIONS=400) as server:
        connections = [await opened(server, upgrade=False) for _ in range(600)]
        for number, (_, writer) in enumerate(connections):
            writer.write(UPGRADE.encode()[: number % 60])
        await asyncio.sleep(0.5)
        assert memory(server) < 75 + GROWTH
        with suppress(ConnectionResetError):  # what it said may not have been read
            refused = await asyncio.wait_for(connections[-1][0].read(1), 10)
            assert refused == b""  # at the latest when its time was up
        started = time.monotonic()
        while True:
            try:
                await still_serves(server)
                break
            except OSError:
                assert time.monotonic() - started < 20
                await asyncio.sleep(0.5)
        shut(*connections)


@asynchronous
async def test_listen_connect_and_watch(tmp_path: Path) -> None:
    limit = 30
    with serving(tmp_path, MAX_SESSIONS=limit, MAX_ERRORS=1_000_000, TRIES_PER_CODE=1_000_000) as server:
        before = memory(server)
        connections = [await opened(server) for _ in range(60)]

        async def flood(number: int) -> bytes:
            reader, writer = connections[number]
            answers = b""
            for count in range(100):
                code = f"{number * 100 + count + 100_000}"
                jti = f"bt_{number}_{count}_" + "x" * 100
                for message in (
                    {"type": "connect", "otc": code},
                    {"type": "bootstrap_watch", "jti": jti},
                    {"type": "bootstrap_init", "jti": jti, "token": "x", "targetPubKey": "k"},
                    {"type": "listen", "otc": code},
                ):
                    writer.write(frame(json.dumps(message)))
                await writer.drain()
                if count % 10 == 0:
                    answers += await reader.read(2**14)
            writer.write(frame('{"type": "end"}'))
            while b"unknown_type" not in answers:
                more = await reader.read(2**14)
                assert more
                answers += more
            return answers

        answers = b""
        for start in range(0, 60, 20):
            answers += b"".join(await asyncio.gather(*(flood(start + number) for number in range(20))))
        # All connections are still open. Those of the first 20 that watch also ask, and cannot listen; the other 40 can.
        assert answers.count(b"bootstrap_watching") == limit
        assert answers.count(b"session_open") == limit
        assert memory(server) < before + GROWTH / 4
        shut(*connections)
        await asyncio.sleep(0.5)
        await still_serves(server, "100000")


@asynchronous
async def test_slow_readers(tmp_path: Path) -> None:
    """One side of each pairing never reads. It is closed; the other side and all other clients are still served."""
    with serving(tmp_path, MAX_UNSENT_BYTES=100_000, MAX_SESSION_BYTES=50_000_000) as server:
        before = memory(server)
        async with dialled(server, 20) as senders:
            slow: list[Streams] = []
            for number, sender in enumerate(senders):
                connection = await opened(server)
                slow.append(connection)
                connection[1].write(frame(json.dumps({"type": "listen", "otc": f"{200_000 + number}"})))
                await connection[0].read(100)
                await sender.send("connect", otc=f"{200_000 + number}")
                assert (await sender.receive())["type"] == "peer_found"

            async def pour(sender: Raw) -> str:
                answer = asyncio.ensure_future(sender.error(60))
                while not answer.done():
                    await sender.send("data", payload="x" * 60_000)
                    await asyncio.sleep(0)
                return await answer

            peak = before

            async def look() -> None:
                nonlocal peak
                while True:
                    peak = max(peak, memory(server))
                    await asyncio.sleep(0.05)

            looking = asyncio.ensure_future(look())
            assert set(await asyncio.gather(*(pour(sender) for sender in senders))) == {"peer_disconnected"}
            looking.cancel()
            assert peak < before + GROWTH
            await still_serves(server)
            shut(*slow)


@asynchronous
async def test_who_asks_without_reading_the_answers(tmp_path: Path) -> None:
    with serving(tmp_path, MAX_ERRORS=100_000_000) as server:
        before = memory(server)
        connections = [await opened(server) for _ in range(10)]

        async def pour(writer: asyncio.StreamWriter, data: bytes) -> None:
            try:
                async with asyncio.timeout(5):
                    while True:
                        writer.write(data * 200)
                        await writer.drain()
            except (TimeoutError, OSError):
                pass

        pings = [pour(writer, frame(b"x" * 120, opcode=9)) for _, writer in connections[:5]]
        nonsense = [pour(writer, frame("nonsense")) for _, writer in connections[5:]]
        await asyncio.gather(*pings, *nonsense, still_serves(server))
        assert memory(server) < before + GROWTH
        shut(*connections)


@asynchronous
async def test_messages_in_tiny_pieces(tmp_path: Path) -> None:
    """The first fragment of a message, and then fragments of two bytes without end."""
    with serving(tmp_path) as server:
        before = memory(server)
        connections = [await opened(server) for _ in range(50)]
        for reader, writer in connections:
            writer.write(b"\x01\x82\0\0\0\0xx" + b"\x00\x82\0\0\0\0xx" * 5000)
            head = await asyncio.wait_for(reader.readexactly(4), 10)
            assert head[0] == 0x88
            assert head[2:] == struct.pack("!H", 1009)
        assert memory(server) < before + GROWTH
        shut(*connections)


@asynchronous
async def test_bodies(tmp_path: Path) -> None:
    """daphne would write bodies of any length to disk."""
    with serving(tmp_path) as server:
        for head in (
            "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
            "POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        ):
            reader, writer = await opened(server, upgrade=False)
            writer.write(head.encode())
            with pytest.raises(OSError):
                while True:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
                    await asyncio.sleep(0)
            assert reader.at_eof() or reader.exception()
            writer.transport.abort()
        await still_serves(server)


@asynchronous
async def test_connections_that_come_and_go(tmp_path: Path) -> None:
    with serving(tmp_path) as server:

        async def come_and_go(count: int) -> None:
            for _ in range(count):
                connection = await opened(server)
                connection[1].write(frame('{"type":"listen","otc":"123456"}'))
                shut(connection)

        # What is left of a connection is collected now and then only; after some rounds memory no longer grows.
        found = []
        for _ in range(5):
            await asyncio.gather(*(come_and_go(60) for _ in range(20)))
            found.append(memory(server))
        assert found[-1] < 75 + GROWTH
        assert found[-1] < max(found[:4]) + 8, found
        async with dialled(server, 2) as (target, controller):
            await match(target, controller, "123456")


@asynchronous
async def test_one_address_does_not_take_all_connections(tmp_path: Path) -> None:
    with serving(tmp_path, CONNECTIONS_PER_ADDRESS=5) as server:
        connections = []
        answers = []
        while "refused" not in answers and len(answers) < 200:
            try:
                connections.append(await opened(server))
            except (OSError, EOFError):
                answers.append("refused")
                continue
            if len(connections) <= 5:
                answers.append("let in")
            else:  # at once, for the relay soon drops a client that does not answer its close
                assert b"rate_limited" in await connections[-1][0].read(200)
                answers.append("told")
        assert answers[:6] == ["let in"] * 5 + ["told"]
        assert answers[-1] == "refused"
        shut(*connections)
