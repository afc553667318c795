"""AmeshAiohttpMiddleware with a real server: the signed request is the one that arrives, with every kind of body and through redirects."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amesh_django.test import EphemeralDevice
from authmesh import AmeshAiohttpMiddleware
from authmesh.client import forget_devices
from authmesh.protocol import InvalidInput
from authmesh.protocol.errors import IdentityMissing
from tests.support.recording import Recorder, Seen

DEVICE = EphemeralDevice("client")

#: URLs that parsers and libraries normalize, and the target that aiohttp sends for each.
ODD = {
    "/": "/",
    "": "/",
    "?x=1": "/?x=1",
    "/a?": "/a",
    "/a%2Fb/c%2fd": "/a%2Fb/c%2Fd",
    "/caf%C3%A9/é ü": "/caf%C3%A9/%C3%A9%20%C3%BC",
    "/q?a=1&a=2&b=&&c": "/q?a=1&a=2&b=&&c",
    "/q?z=1&a=x+y%20z&%C3%A9=ü": "/q?z=1&a=x+y%20z&%C3%A9=%C3%BC",
    "/a/../b/./c": "/b/c",
    "/semi;colon=1,2/@:!$&'()*": "/semi;colon=1,2/@:!$&'()*",
    "/tilde/~user/%7Euser": "/tilde/~user/~user",
    "/q?u=http://h/p?x#fragment": "/q?u=http://h/p?x",
    "/100%/zz%zz": "/100%25/zz%25zz",
}


def in_session(
    calls: Callable[[aiohttp.ClientSession], Awaitable[None]],
    middleware: AmeshAiohttpMiddleware | None = None,
    **options: Any,
) -> None:
    """Run calls in a session that signs."""

    async def main() -> None:
        signs = middleware or AmeshAiohttpMiddleware(DEVICE)
        options["timeout"] = aiohttp.ClientTimeout(total=options.pop("total", 5))
        async with aiohttp.ClientSession(middlewares=[signs], **options) as session:
            await calls(session)

    asyncio.run(main())


def request(method: str, url: str, *, session: dict[str, Any] | None = None, **options: Any) -> aiohttp.ClientResponse:
    """Send one request, and return the response after its body was read."""
    found = []

    async def call(opened: aiohttp.ClientSession) -> None:
        async with opened.request(method, url, **options) as response:
            await response.read()
            found.append(response)

    in_session(call, **(session or {}))
    return found[0]


def all_genuine(seen: list[Seen]) -> None:
    """Check that every request that arrived has a valid signature and its own nonce."""
    assert all(one.public_key == DEVICE.identity.public_key and one.genuine() for one in seen)
    assert len({one.authorization.nonce for one in seen}) == len(seen)


def form() -> aiohttp.FormData:
    data = aiohttp.FormData({"x": "1"})
    data.add_field("f", io.BytesIO(b"\0" * 3000), filename="ü.bin")
    return data


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(30):
        yield b"chunk" * 20_000


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GET", {}),
        ("get", {}),
        ("DELETE", {}),
        ("HEAD", {}),
        ("POST", {}),
        ("POST", {"json": {"name": "café", "n": [1, 2]}}),
        ("POST", {"data": {"a": "1 2", "b": "ü"}}),
        ("PUT", {"data": bytes(range(256)) * 10}),
        ("PATCH", {"data": "tëxt"}),
        ("POST", {"data": form}),
        ("POST", {"data": lambda: io.BytesIO(b"file" * 500_000)}),
        ("POST", {"data": lambda: io.StringIO("text")}),
        ("POST", {"data": chunks}),
        ("POST", {"data": lambda: io.BytesIO(b"file"), "chunked": True}),
        ("POST", {"data": b"bytes", "expect100": True}),
    ],
)
def test_what_arrives_is_what_was_signed(server: Recorder, method: str, options: dict[str, Any]) -> None:
    options = {name: value() if callable(value) else value for name, value in options.items()}
    assert request(method, f"{server.url}/api/x?b=2&a=1", **options).status == 200
    all_genuine(server.seen)
    assert len(server.seen) == 1
    assert bool(server.last.body) == bool(options)
    assert server.last.header("Transfer-Encoding") is None


@pytest.mark.parametrize("url", ODD)
def test_odd_urls(server: Recorder, url: str) -> None:
    request("GET", server.url + url)
    assert server.last.target == ODD[url]
    all_genuine(server.seen)


def test_parameters_and_a_base_url(server: Recorder) -> None:
    request("GET", "x", params={"q": "ä b", "n": "1"}, session={"base_url": f"{server.url}/api/"})
    assert server.last.target == "/api/x?q=%C3%A4+b&n=1"
    all_genuine(server.seen)


def test_a_file_is_hashed_from_where_it_stands(server: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"skipped" + b"sent" * 500_000)
    server.redirects = {"/old": (307, "/new")}
    with path.open("rb") as file:
        file.seek(7)
        request("POST", f"{server.url}/old", data=file)
    assert [seen.body for seen in server.seen] == [b"sent" * 500_000] * 2
    assert server.seen[0].header("Content-Type") == server.seen[1].header("Content-Type")
    all_genuine(server.seen)


def test_what_is_compressed_later_is_refused(server: Recorder) -> None:
    with pytest.raises(InvalidInput, match="Compress the body yourself"):
        request("POST", server.url, data=b"x" * 1000, compress="deflate")
    assert server.seen == []


@pytest.mark.parametrize("total", [5, None])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_signed_again(server: Recorder, status: int, total: float | None) -> None:
    server.redirects = {"/old": (status, "/new%2fer?to=1&at=2[]"), "/new%2Fer": (status, f"{server.url}/newest")}
    response = request("POST", f"{server.url}/old", data=b"body" * 100, session={"total": total})
    assert (response.status, str(response.url)) == (200, f"{server.url}/newest")
    assert [seen.target for seen in server.seen] == ["/old", "/new%2Fer?to=1&at=2%5B%5D", "/newest"]
    all_genuine(server.seen)
    kept = status in (307, 308)
    assert server.last.method == ("POST" if kept else "GET")
    assert server.last.body == (server.seen[0].body if kept else b"")


@pytest.mark.parametrize("total", [5, None])
def test_another_origin_is_not_signed_for(server: Recorder, other: Recorder, total: float | None) -> None:
    server.redirects = {"/out": (307, f"{other.url}/back")}
    other.redirects = {"/back": (307, f"{server.url}/end"), "/far": (302, "/further")}
    request("POST", f"{server.url}/out", data=b"x", session={"total": total})
    assert [(seen.target, seen.signed) for seen in server.seen + other.seen] == [
        ("/out", True),
        ("/end", False),  # another server has chosen this target
        ("/back", False),
    ]
    server.redirects = {"/out": (302, f"{other.url}/far")}
    request("GET", f"{server.url}/out", session={"total": total})
    assert not any(seen.signed for seen in other.seen)


def test_another_name_of_the_same_machine_is_another_origin(server: Recorder) -> None:
    server.redirects = {"/a": (302, server.url.replace("127.0.0.1", "localhost") + "/b")}
    request("GET", f"{server.url}/a")
    assert [(seen.target, seen.signed) for seen in server.seen] == [("/a", True), ("/b", False)]


@pytest.mark.slow
def test_chains_at_the_same_time_do_not_mix(server: Recorder, other: Recorder) -> None:
    """One chain left its origin. Requests that are no part of it are signed, to that other origin, too, and nothing is kept."""
    server.redirects = {"/out": (302, f"{other.url}/far"), "/in": (302, "/end")}
    middleware = AmeshAiohttpMiddleware(DEVICE)

    async def calls(session: aiohttp.ClientSession) -> None:
        async def call(url: str) -> None:
            async with session.get(url) as response:
                await response.read()

        await asyncio.gather(
            *(call(url) for url in (f"{server.url}/out", f"{server.url}/in", f"{other.url}/named") * 10)
        )

    in_session(calls, middleware)
    assert {(seen.target, seen.signed) for seen in server.seen + other.seen} == {
        ("/out", True),
        ("/far", False),
        ("/in", True),
        ("/end", True),
        ("/named", True),
    }
    all_genuine([seen for seen in server.seen + other.seen if seen.signed])
    gc.collect()
    assert middleware._chains == {}


def test_a_redirect_is_not_followed_unasked(server: Recorder, other: Recorder) -> None:
    """The caller follows it: then the caller has named the other origin."""
    server.redirects = {"/old": (307, f"{other.url}/new")}

    async def calls(session: aiohttp.ClientSession) -> None:
        response = await session.post(f"{server.url}/old", data=b"x", allow_redirects=False)
        assert (response.status, len(server.seen)) == (307, 1)
        await session.post(response.headers["Location"], data=b"x")

    in_session(calls)
    all_genuine(server.seen + other.seen)
    assert len(other.seen) == 1


def test_too_many_redirects_end(server: Recorder) -> None:
    server.redirects = {"/loop": (302, "/loop")}
    with pytest.raises(aiohttp.TooManyRedirects):
        request("GET", f"{server.url}/loop")
    all_genuine(server.seen)


def test_each_attempt_of_a_retry_is_signed(server: Recorder) -> None:
    """A middleware before ours sends the request twice, with a body that can be read only once."""

    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        return await handler(request)

    async def main() -> None:
        middlewares = [twice, AmeshAiohttpMiddleware(DEVICE)]
        async with (
            aiohttp.ClientSession(middlewares=middlewares) as session,
            session.post(f"{server.url}/", data=chunks()) as response,
        ):
            assert response.status == 200

    asyncio.run(main())
    assert [len(seen.body) for seen in server.seen] == [3_000_000] * 2
    all_genuine(server.seen)


def test_an_attempt_after_a_broken_connection_is_signed_again() -> None:
    """aiohttp repeats a GET by itself if the server has closed the connection that it kept."""
    headers: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            headers.extend(line for line in head.split(b"\r\n") if line.startswith(b"Authorization"))
            if len(headers) == 2:
                break  # closes the kept connection without a response
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def calls(session: aiohttp.ClientSession) -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            for _ in range(2):
                async with session.get(f"http://127.0.0.1:{port}/") as response:
                    await response.read()
            await session.close()

    in_session(calls)
    assert len(headers) == len(set(headers)) == 3


def test_the_default_device_signs(server: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MESH_DIR", str(tmp_path / "device"))
    forget_devices()  # those of other tests

    async def calls(session: aiohttp.ClientSession) -> None:
        with pytest.raises(IdentityMissing):
            await session.get(server.url)
        DEVICE.write(tmp_path / "device")
        await session.get(server.url)
        all_genuine(server.seen)
        replaced = EphemeralDevice("client")  # as `amesh rotate` does while this session is open
        shutil.rmtree(tmp_path / "device")
        replaced.write(tmp_path / "device")
        await session.get(server.url)
        assert server.last.public_key == replaced.identity.public_key and server.last.genuine()

    in_session(calls, AmeshAiohttpMiddleware())
    assert len(server.seen) == 2


@pytest.mark.process
def test_without_aiohttp_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from authmesh import AmeshAiohttpMiddleware\n"
        "try: AmeshAiohttpMiddleware()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "pip install 'amesh-django[aiohttp]'" in done.stdout
