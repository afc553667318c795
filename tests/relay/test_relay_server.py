"""The server of a relay: daphne, one process, in memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.relay.relay_world import JTI, PATIENCE, Clock, asynchronous, converse, dialled, match, serving, until
from tests.support import fork_server, services

pytestmark = pytest.mark.process

UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Server]:
    with serving(tmp_path_factory.mktemp("relay")) as running:
        yield running


def get(server: services.Server, path: str, **options: str) -> httpx.Response:
    return httpx.get(server.url + path, headers=options)


@asynchronous
async def test_a_pairing(server: services.Server) -> None:
    async with dialled(server, 2) as (target, controller):
        await converse(target, controller, "200001")
        await converse(controller, target, "200001")


#: What clients of other makes say when they connect: `ws`, the WebSocket of Node and that of Bun, and a browser through a proxy.
HELLOS = {
    "ws": (
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    ),
    "node": (
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n"
        "accept: */*\r\naccept-language: *\r\nsec-fetch-mode: websocket\r\nuser-agent: node\r\n"
        "pragma: no-cache\r\ncache-control: no-cache\r\naccept-encoding: gzip, deflate\r\n"
    ),
    "bun": (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "other extensions": (
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Extensions: x-unknown; a=b, permessage-deflate; server_max_window_bits=10\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
}


@pytest.mark.parametrize("who", HELLOS)
@asynchronous
async def test_clients_of_other_makes(server: services.Server, who: str) -> None:
    """The relay declines extensions, and offering them does no harm."""
    reader, writer = await asyncio.open_connection(services.HOST, server.port)
    writer.write(f"GET /ws HTTP/1.1\r\n{HELLOS[who]}Host: {services.HOST}:{server.port}\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 101 ")
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in head
        assert "sec-websocket-extensions" not in head
        body = b'{"type":"listen","otc":"200013"}'
        writer.write(bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body)
        answer = await reader.readexactly(2)
        assert b"session_open" in await reader.readexactly(answer[1])  # no more: the next is a ping, after 20 seconds
    writer.transport.abort()
    async with dialled(server, compression="deflate", user_agent_header="python") as (later,):
        await until(lambda: get(server, "/health").json()["sessions"] == 0)
        await later.send("listen", otc="200013")
        assert (await later.receive())["type"] == "ack"


@asynchronous
async def test_a_token(server: services.Server) -> None:
    async with dialled(server, 2) as (controller, target):
        await controller.send("bootstrap_watch", jti=JTI)
        assert await controller.receive() == {"type": "bootstrap_watching", "jti": JTI}
        await target.send("bootstrap_init", jti=JTI, targetPubKey="k", proof="p", targetSig="s")
        assert (await controller.receive())["proof"] == "p"
        await controller.send("bootstrap_ack", jti=JTI, publicKey="K", controllerSig="S")
        assert (await target.receive())["controllerSig"] == "S"


@asynchronous
async def test_health(server: services.Server) -> None:
    before = get(server, "/health").json()["sessions"]
    async with dialled(server, 2) as (target, controller):
        await match(target, controller, "200002")
        response = get(server, "/health")
        assert response.status_code == 200
        assert response.text == f'{{"status":"ok","sessions":{before + 1}}}'
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"


def test_other_paths(server: services.Server) -> None:
    assert "amesh relay" in get(server, "/").text
    assert get(server, "/").status_code == 404
    assert httpx.post(server.url + "/health").status_code == 404
    assert httpx.head(server.url + "/health").status_code == 200


def test_metrics(server: services.Server) -> None:
    response = get(server, "/metrics")
    assert response.status_code == 200
    assert "amesh_relay_pairings_total " in response.text
    assert "# HELP amesh_relay_refusals_total" in response.text


@pytest.mark.parametrize(("path", "origin"), [("/ws", "https://evil.example"), ("/", None), ("/ws/482916", None)])
@asynchronous
async def test_who_does_not_get_in(server: services.Server, path: str, origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://{services.HOST}:{server.port}{path}", origin=origin)  # type: ignore[arg-type]
    assert caught.value.response.status_code == 403


def closes(server: services.Server, code: int) -> float:
    """Return the number of connections that were closed with a code, as the metrics report it."""
    found = re.search(rf'amesh_relay_closes_total{{code="{code}"}} (\S+)', get(server, "/metrics").text)
    return float(found[1]) if found else 0.0


# --- messages that are none ------------------------------------------------------------------------------------------


@asynchronous
async def test_64_kib_and_one_byte(server: services.Server) -> None:
    before = closes(server, 1009)
    async with dialled(server, 4, max_size=None) as (target, controller, third, fourth):
        await match(target, controller, "200003")
        frame = json.dumps({"type": "data", "payload": ""})
        longest = frame.replace('""', '"' + "x" * (65_536 - len(frame)) + '"')
        await target.connection.send(longest)
        assert len((await controller.receive())["payload"]) == 65_536 - len(frame)
        await target.connection.send(longest + " ")
        assert await target.closed() == 1009
        assert await controller.error() == "peer_disconnected"
        await third.connection.send(["x" * 40_000] * 2)  # in two pieces
        assert await third.closed() == 1009
        await fourth.connection.send(["x"] * 500)
        assert await fourth.closed() == 1009
    assert closes(server, 1009) == before + 3


@asynchronous
async def test_a_frame_that_claims_to_be_endless(server: services.Server) -> None:
    reader, writer = await asyncio.open_connection(services.HOST, server.port)
    writer.write(UPGRADE.encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x81\xff" + struct.pack("!Q", 2**62) + b"\0\0\0\0" + b"x" * 1000)
    head = await reader.readexactly(2)
    assert head[0] == 0x88
    assert (await reader.readexactly(head[1]))[:2] == struct.pack("!H", 1009)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


@asynchronous
async def test_what_is_no_json_leaves_the_connection_open(server: services.Server) -> None:
    async with dialled(server) as (client,):
        for text in ("null", "7", "[]", "{", '"x"', "[" * 60_000, "9" * 60_000, '{"type":"data","payload":1}'):
            await client.connection.send(text)
            assert await client.error() == "invalid_message"
        await client.connection.send(b'{"type":"done"}')
        assert await client.error() == "invalid_message"
        await client.connection.send('{"type":"listen","type":"nonsense"}')
        assert await client.error() == "unknown_type"
        await client.send("ping")
        assert await client.error() == "unknown_type"
        await client.send("listen", otc="200004")
        assert (await client.receive())["type"] == "ack"


@asynchronous
async def test_what_is_no_utf8(server: services.Server) -> None:
    before = closes(server, 1007)
    async with dialled(server) as (client,):
        await client.connection.send([b"\xff\xfe"], text=True)
        assert await client.closed() == 1007
    assert closes(server, 1007) == before + 1


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [0, 1, 2])
@pytest.mark.unversioned  # it is about daphne, whose version is the same
@asynchronous
async def test_who_counts_as_who_behind_proxies(tmp_path: Path, proxies: int) -> None:
    variables = {"AMESH_TRUST_PROXY": proxies} if proxies else {"AMESH_TRUST_PROXY": "no"}
    with serving(tmp_path, TRIES_PER_MINUTE=2, **variables) as server:

        async def tries(forwarded: str, count: int) -> str:
            """Return the answer to the last of *count* tries."""
            async with dialled(server, additional_headers={"X-Forwarded-For": forwarded}) as (client,):
                for _ in range(count):
                    await client.send("connect", otc="200000")
                    answer = await client.error()
                return answer

        assert await tries("6.6.6.1, 192.0.2.1, 10.0.0.1", 2) == "otc_not_found"
        # What a client invents changes nothing; what the trusted proxies say does.
        assert await tries("6.6.6.2, 192.0.2.1, 10.0.0.1", 1) == "rate_limited"
        assert (await tries("6.6.6.1, 192.0.2.1, 10.0.0.2", 1) == "rate_limited") is (proxies != 1)
        assert (await tries("6.6.6.1, 192.0.2.2, 10.0.0.1", 1) == "rate_limited") is (proxies != 2)


@asynchronous
async def test_a_code_burns(tmp_path: Path) -> None:
    with serving(tmp_path, TRIES_PER_CODE=5) as server:
        async with dialled(server, 2) as (target, thief):
            for _ in range(5):
                await thief.send("connect", otc="200005")
                assert await thief.error() == "otc_not_found"
            await target.send("listen", otc="200005")
            assert await target.error() == "otc_in_use"


@pytest.mark.unversioned  # it is about daphne, whose version is the same
@asynchronous
async def test_time_is_up(tmp_path: Path) -> None:
    with serving(tmp_path, MATCH_SECONDS=3, FINISH_SECONDS=3, IDLE_SECONDS=5) as server:
        async with dialled(server, 4) as (alone, target, controller, idle):
            await alone.send("listen", otc="200006")
            assert (await alone.receive())["type"] == "ack"
            await match(target, controller, "200007")
            assert await alone.error() == "otc_not_found"
            assert await target.error() == await controller.error() == "peer_disconnected"
            assert await idle.closed() == 1001
            assert get(server, "/health").json()["sessions"] == 0


@asynchronous
async def test_full(tmp_path: Path) -> None:
    with serving(tmp_path, MAX_CONNECTIONS=3) as server:
        async with dialled(server, 3), dialled(server) as (late,):
            assert await late.closed() == 1013
            assert get(server, "/health").status_code == 200
        async with dialled(server, 3) as clients:
            await clients[2].send("listen", otc="200008")
            assert (await clients[2].receive())["type"] == "ack"


@asynchronous
async def test_two_hundred_pairings_at_once(server: services.Server) -> None:
    async def pairing(number: int) -> None:
        async with dialled(server, 2) as (target, controller):
            await converse(target, controller, str(300_000 + number))

    await asyncio.gather(*(pairing(number) for number in range(200)))
    assert get(server, "/health").json()["sessions"] == 0


# --- the program ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_relay_that_stops_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with dialled(server, 3) as (target, controller, idle):
            await match(target, controller, "200009")
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            assert {await client.closed() for client in (target, controller, idle)} == {1012}
            assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.output()
        assert "Error" not in server.output()


#: Settings under which all that takes part logs all that it can: we, Django, Channels, daphne, autobahn, Twisted, asyncio, redis-py.
LOUD = """
import logging
import asyncio.log
import txaio
from twisted.logger import STDLibLogObserver, globalLogPublisher
from relay_project.settings import *

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"all": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["all"], "level": 1},
}
txaio.use_twisted()
txaio.set_global_log_level("trace")
globalLogPublisher.addObserver(STDLibLogObserver())
"""


@pytest.mark.parametrize("redis_too", [False, True], ids=["memory", "redis"])
@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "mounted"])
@pytest.mark.unversioned  # it is about daphne, whose version is the same
@asynchronous
async def test_nothing_secret_is_logged(
    request: pytest.FixtureRequest, tmp_path: Path, redis_too: bool, mounted: bool
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    redis: services.Redis | None = request.getfixturevalue("redis") if redis_too else None
    env = {
        "DJANGO_SETTINGS_MODULE": "loud",
        "PYTHONPATH": f"{tmp_path}:{services.ROOT}:{services.ROOT}/cli",
        "PYTHONASYNCIODEBUG": "1",
        "DJANGO_DATA_DIR": str(tmp_path / "data"),
        "REDIS_URL": redis.url if redis else "",
    }
    command = [sys.executable, "manage.py", "amesh_relay", "--port", "{port}"]
    if mounted:
        command += ["--application", "relay_project.asgi.application"]
    with services.serve(command, env=env) as server:
        async with dialled(server, 3) as (target, controller, watcher):
            await match(target, controller, "739201")
            await target.send("data", payload="PAYLOAD-1")
            await controller.receive()
            await target.connection.send('{"type":"listen","otc":"739202","PAYLOAD-2":}')
            await target.error()
            await target.send("connect", otc="739203")
            await target.error()
            await watcher.send("bootstrap_watch", jti="bt_JTI-1")
            await watcher.receive()
            await target.leave()
            async with dialled(server) as (asker,):
                await asker.send("bootstrap_init", jti="bt_JTI-1", token="TOKEN-1", targetPubKey="KEY-1")
                await watcher.receive()
                await watcher.send("bootstrap_ack", jti="bt_JTI-1", publicKey="KEY-2", controllerSig="SIG-1")
                await asker.receive()
                await asker.connection.send("x" * 70_000)
                await asker.closed()
            async with dialled(server, 2) as (one, other):
                await match(one, other, "739204")
                await one.send("data", payload="PAYLOAD-3")
                if redis is not None:
                    redis.stop()  # in the middle of it
                    await until(lambda: "Cannot reach Redis" in server.output())
                    await one.send("listen", otc="739205")
        output = server.output()
    if redis is not None:
        redis.start()
        output += redis.output()
    assert "Relay at ws://" in output
    assert "asyncio" in output or "selector" in output  # it is loud
    for secret in ("7392", "PAYLOAD", "JTI-1", "TOKEN-1", "KEY-", "SIG-1", "xxxx"):
        assert secret not in output, secret


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--port", "http"], {}, "Set --port or PORT"),
        (["--port", "70000"], {}, "1 to 65535"),
        (["--host", "192.0.2.1"], {}, "check that --host is an address of this machine"),
        (["--application", "nowhere.at.all"], {}, "Set --application to the dotted path"),
        (
            [],
            {"AMESH_RELAY_MAX_SESSIONS": "many"},
            "AMESH['RELAY']['MAX_SESSIONS'] must be an integer greater than or equal to 1",
        ),
        ([], {"AMESH_RELAY_MAX_MESSAGE_BYTES": "1"}, "must be an integer greater than or equal to 1024"),
        ([], {"REDIS_URL": "http://:secret@x"}, "REDIS_URL is not an address of Redis"),
    ],
)
@pytest.mark.unversioned  # the words come before anything is started
def test_what_it_can_t_start_with(tmp_path: Path, arguments: list[str], variables: dict[str, str], words: str) -> None:
    failure = _failure(tmp_path, arguments, variables)
    assert words in failure
    assert "Traceback" not in failure
    assert "secret" not in failure


def test_a_port_that_is_taken(tmp_path: Path, server: services.Server) -> None:
    assert "If another program uses the port" in _failure(tmp_path, ["--port", str(server.port)], {})


def _failure(folder: Path, arguments: list[str], variables: dict[str, str]) -> str:
    argv = [sys.executable, "manage.py", "amesh_relay", *arguments]
    done = fork_server.run(argv, env={**_environment(folder), **variables}, timeout=60)
    assert done.returncode == 1, done
    return done.stderr


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DJANGO_DATA_DIR": str(folder / "data"), "DJANGO_SETTINGS_MODULE": "relay_project.settings"}


def test_requests_to_a_project_may_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed after a while; not one that uploads, waits for its answer, or sends the next request."""
    from twisted.internet.testing import StringTransport
    from twisted.web.http import HTTPFactory

    from amesh_django.relay import private, server
    from amesh_django.relay.addresses import Tally

    clock = Clock()
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=clock))
    gate = server.Gate(10, Tally(0, 1))

    def connected(request: type) -> tuple[Any, StringTransport]:
        factory = HTTPFactory()
        factory.server = Mock()  # type: ignore[attr-defined]  # the one of daphne
        protocol: Any = factory.buildProtocol(None)
        protocol.requestFactory = request
        connection: Any = server.Connection(gate, protocol)
        transport = StringTransport()
        connection.makeConnection(transport)
        return connection, transport

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    silent, asking, relay = (
        connected(private.PatientRequest),
        connected(private.PatientRequest),
        connected(private.WebRequest),
    )
    silent[0].dataReceived(head)
    for connection in (asking, relay):
        connection[0].dataReceived(head + b"\r\n")
    clock.now += 20
    gate.close_silent()
    assert [transport.disconnected for _, transport in (silent, asking, relay)] == [True, False, True]
    (request,) = asking[0].wrappedProtocol._channel.requests
    request.finish()
    for seconds, cut in ((10, False), (10, True)):
        clock.now += seconds
        gate.close_silent()
        assert asking[1].disconnected is cut


def test_who_may_connect_before_a_byte_is_read() -> None:
    """The limit of an IPv6 /48 holds there too, and that of the relay."""
    from amesh_django.relay import server
    from amesh_django.relay.addresses import Tally

    gate = server.Gate(4, Tally(1, 2))

    def connect_from(address: str) -> bool:
        if not gate.admits(address):
            return False
        connection = Mock(address=address)
        gate.registerProtocol(connection)
        return True

    addresses = ["2001:db8:1:1::/64", "2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:1:3::/64", "192.0.2.1"]
    assert [connect_from(address) for address in addresses] == [True, False, True, False, True]
    assert [connect_from(f"192.0.2.{number}") for number in (2, 3)] == [True, False]


@asynchronous
async def test_mounted_in_a_project(tmp_path: Path) -> None:
    """The whole project that ships; and plain daphne, which cannot send every close code."""
    application = "relay_project.asgi:application"
    with serving(tmp_path, arguments=("--application", application)) as server:
        await _whole_project(server, 1009)
    with services.serve(services.daphne(application), env=_environment(tmp_path)) as server:
        await _whole_project(server, 4009)


async def _whole_project(server: services.Server, too_big: int) -> None:
    assert get(server, "/").status_code == 200
    assert get(server, "/health").json() == {"status": "ok", "sessions": 0}
    assert "amesh_relay" in get(server, "/metrics").text
    async with dialled(server, 3) as (target, controller, third):
        await converse(target, controller, "200010")
        await third.connection.send("x" * 65_537)
        assert await third.closed() == too_big


def test_a_server_without_websockets_says_so(tmp_path: Path) -> None:
    with services.serve(services.gunicorn("relay_project.wsgi:application"), env=_environment(tmp_path)) as server:
        response = get(server, "/health")
        assert response.status_code == 503
        assert "manage.py amesh_relay" in response.text


@asynchronous
async def test_under_uvicorn(tmp_path: Path) -> None:
    with services.serve(services.uvicorn("relay_project.asgi:application"), env=_environment(tmp_path)) as server:
        async with dialled(server, 3) as (target, controller, third):
            await converse(target, controller, "200011")
            await third.connection.send("x" * 65_537)
            assert await third.closed() == 1009


@asynchronous
async def test_a_client_that_vanishes(server: services.Server) -> None:
    """A client disappears without closing: its machine was switched off, or its network is gone."""
    async with dialled(server, 1) as (controller,):
        reader, writer = await asyncio.open_connection(services.HOST, server.port)
        writer.write(UPGRADE.encode())
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"type":"listen","otc":"200012"}'
        writer.write(bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body)
        await reader.read(10)
        await controller.send("connect", otc="200012")
        assert (await controller.receive())["type"] == "peer_found"
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert await controller.error() == "peer_disconnected"
