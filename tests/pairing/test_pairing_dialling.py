"""Connecting to a relay: each failure before the two devices are matched has its own error."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from authmesh.pairing import Paired
from authmesh.protocol.pairing.errors import (
    CodeNotFound,
    CodeTaken,
    InvalidCode,
    InvalidRelayAddress,
    MessageTooBig,
    NobodyCame,
    PairingError,
    RateLimited,
    RelayCertificateNotTrusted,
    RelayClosed,
    RelayFull,
    RelayProtocolViolation,
    RelaySilent,
    RelayUnreachable,
    SessionDataLimit,
)
from tests.pairing.hostile_relay import DONE, FOUND, HostileRelay, data, error
from tests.pairing.pairing_people import QUICK, SHORT, Two, fails, is_error, run


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "socks_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- the relay cannot be reached -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["", "relay.example", "https://relay.example/ws", "wss://", "ws://:1/ws", "ws://a b/ws", "ws://h:99999"]
)
def test_an_invalid_address(address: str) -> None:
    async def test() -> None:
        await fails(Two(address), InvalidRelayAddress)

    run(test())


@pytest.mark.parametrize("code", ["", "12345", "012345", "abcdef"])
def test_an_invalid_code(code: str) -> None:
    async def test() -> None:
        await fails(Two("ws://127.0.0.1:1/ws"), InvalidCode, code=code, ends="controller")

    run(test())


def test_no_server_listens() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        assert "no server listens there" in await fails(Two(f"ws://127.0.0.1:{port}/ws"), RelayUnreachable)
        assert "no server listens there" in await fails(Two(f"ws://localhost:{port}/ws"), RelayUnreachable)

    run(test())


def test_an_unknown_host() -> None:
    async def test() -> None:
        sentence = await fails(Two("ws://relay.invalid/ws"), RelayUnreachable)
        assert "ws://relay.invalid/ws cannot be reached" in sentence and "--relay" in sentence

    run(test())


@contextlib.asynccontextmanager
async def tcp_server(answer: bytes | None) -> AsyncIterator[str]:
    """Run a server that is not a relay: it gives the same answer to everything, or none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(4096)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
    finally:
        server.close()
        await asyncio.sleep(0.05)


def http(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "", ""]).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (http("404 Not Found"), RelayUnreachable, "404"),
        (http("200 OK"), RelayUnreachable, "200"),
        (http("429 Too Many Requests"), RateLimited, "Wait a minute"),
        (http("503 Service Unavailable"), RelayFull, "no capacity left"),
        (http("301 Moved", "Location: ws://127.0.0.1:1/ws"), RelayUnreachable, "301"),  # the redirect is not followed
        (b"SSH-2.0-OpenSSH_9.6\r\n", RelayUnreachable, "not a relay"),
        (b"", RelayUnreachable, "not a relay"),
        (None, RelaySilent, "does not answer"),
    ],
)
@pytest.mark.slow
def test_another_server_listens(answer: bytes | None, kind: type[PairingError], says: str) -> None:
    async def test() -> None:
        async with tcp_server(answer) as url:
            two = Two(url, timeouts=dataclasses.replace(QUICK, connect=SHORT))
            assert says in await fails(two, kind)
            assert two.typist.asked == []

    run(test())


@pytest.mark.slow
def test_a_relay_without_tls_that_waits_for_http() -> None:
    async def test() -> None:
        async with tcp_server(None) as url:
            two = Two(url.replace("ws:", "wss:"), timeouts=dataclasses.replace(QUICK, connect=SHORT))
            assert "starts with ws://" in await fails(two, RelaySilent)

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test relay")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "relay.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_tls(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)

    async def test() -> None:
        async with HostileRelay().running(tls=server) as relay:
            sentence = await fails(Two(relay.url), RelayCertificateNotTrusted)
            assert "not trusted on this machine" in sentence and relay.url in sentence
            assert all(
                isinstance(outcome, Paired)
                for outcome in await Two(relay.url, tls=ssl.create_default_context(cafile=certificate)).pair()
            )
            assert await fails(Two(relay.url.replace("wss:", "ws:")), RelayUnreachable)
        async with HostileRelay().running() as relay:
            sentence = await fails(Two(relay.url.replace("ws:", "wss:")), RelayUnreachable)
            assert "ws://" in sentence

    run(test())


def test_without_websockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "websockets.asyncio.client", None)

    async def test() -> None:
        assert "amesh-django[cli]" in await fails(Two("ws://127.0.0.1:1/ws"), RelayUnreachable)

    run(test())


# --- the relay before the two are matched ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_otc", InvalidCode),
        ("otc_not_found", CodeNotFound),
        ("peer_already_connected", CodeTaken),
        ("rate_limited", RateLimited),
        ("relay_capacity", RelayFull),
        ("session_data_limit", SessionDataLimit),
        ("invalid_message", RelayProtocolViolation),
        ("unknown_type", RelayProtocolViolation),
        ("\x1b[2Jsomething new", RelayProtocolViolation),
        (None, RelayProtocolViolation),
        ([], RelayProtocolViolation),
    ],
)
def test_the_relay_reports_an_error(code: Any, kind: type[PairingError]) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[error(code)]], [[error(code)]]
            assert "\x1b" not in await fails(Two(relay.url), kind)

    run(test())


def test_an_unknown_code() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            await fails(Two(relay.url), CodeNotFound, ends="controller")

    run(test())


def test_a_code_can_be_used_once() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url)
            two.typist.waits_at = "enter"
            await two.meet()
            while "enter" not in two.typist.asked:
                await asyncio.sleep(0.01)
            late = Two(relay.url)
            await fails(late, CodeTaken, code=two.room.one_time_code.result(), ends="controller")
            two.tasks["target"].cancel()
            await two.ends()

    run(test())


NONSENSE = [
    "",
    "hello",
    "null",
    "5",
    "[]",
    '"ack"',
    "{}",
    b"\x00\xff",
    '{"type":"ack"}',
    '{"type":"ack","message":5}',
    '{"type":["ack"],"message":"session_open"}',
    '{"type":"data","payload":5}',
    '{"type":"later"}',
    "[" * 50_000,
    DONE,
    data("x"),
]


@pytest.mark.parametrize("raw", NONSENSE)
def test_a_relay_that_sends_malformed_frames(raw: str | bytes) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[raw]], [[raw]]
            await fails(Two(relay.url), RelayProtocolViolation)
            relay.on_listen = [[FOUND]]  # before a controller can have come
            two = Two(relay.url)
            await fails(two, RelayProtocolViolation, ends="target")
            assert two.typist.asked == []

    run(test())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1000, RelayClosed),
        (1002, RelayProtocolViolation),
        (1008, RelayClosed),
        (1011, RelayClosed),
        (1013, RelayFull),
        (1009, MessageTooBig),
    ],
)
def test_the_relay_closes(code: int, kind: type[PairingError]) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[code]], [[code]]
            await fails(Two(relay.url), kind)

    run(test())


@pytest.mark.slow
def test_a_relay_that_never_answers() -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            relay.on_listen, relay.on_connect = [[]], [[]]
            await fails(Two(relay.url, timeouts=dataclasses.replace(QUICK, relay=SHORT)), RelaySilent)

    run(test())


@pytest.mark.parametrize("how", ["silence", "error", "close"])
def test_nobody_comes(how: str) -> None:
    async def test() -> None:
        async with HostileRelay().running() as relay:
            two = Two(relay.url, timeouts=dataclasses.replace(QUICK, peer=SHORT))
            listening = two.listen()
            code = await two.room.one_time_code
            if how != "silence":
                await asyncio.sleep(0.95 * SHORT)
                peer = relay.sessions[code].target
                await (peer.send(error("otc_not_found")) if how == "error" else peer.close(1000))
            is_error((await asyncio.gather(listening, return_exceptions=True))[0], NobodyCame)

    run(test())
