"""AmeshAuth with a real server: the signed request is the one that arrives, with every kind of body and through redirects."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from amesh_django.test import EphemeralDevice
from authmesh.client import AmeshAuth, fetch
from authmesh.client.httpx_auth import _origin_of
from authmesh.client.origins import may_sign
from authmesh.protocol import InvalidInput
from tests.support.recording import Recorder, Seen

DEVICE = EphemeralDevice("client")
KEY = DEVICE.identity.public_key

#: URLs that parsers and libraries normalize, and the target that httpx sends for each.
ODD = {
    "/": "/",
    "": "/",
    "?x=1": "/?x=1",
    "/a?": "/a?",
    "/a%2Fb/c%2fd": "/a%2Fb/c%2fd",
    "/caf%C3%A9/é ü": "/caf%C3%A9/%C3%A9%20%C3%BC",
    "/q?a=1&a=2&b=&&c": "/q?a=1&a=2&b=&&c",
    "/q?z=1&a=x+y%20z&%C3%A9=ü": "/q?z=1&a=x+y%20z&%C3%A9=%C3%BC",
    "/a/../b/./c": "/b/c",
    "/a/%2e%2e/b": "/a/%2e%2e/b",
    "//double//slash": "//double//slash",
    "/semi;colon=1,2/@:!$&'()*": "/semi;colon=1,2/@:!$&'()*",
    "/tilde/~user/%7Euser": "/tilde/~user/%7Euser",
    "/q?u=http://h/p?x#fragment": "/q?u=http://h/p?x",
    "/100%/zz%zz": "/100%/zz%zz",
}

Send = Callable[..., httpx.Response]


def sync_send(method: str, url: str, *, client: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
    with httpx.Client(auth=AmeshAuth(DEVICE), follow_redirects=True, **(client or {})) as opened:
        return opened.request(method, url, **options)


def async_send(method: str, url: str, *, client: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(auth=AmeshAuth(DEVICE), follow_redirects=True, **(client or {})) as opened:
            return await opened.request(method, url, **options)

    return asyncio.run(send())


@pytest.fixture(params=[sync_send, async_send], ids=["sync", "async"])
def send(request: pytest.FixtureRequest) -> Send:
    """Send a request with a sync or an async client."""
    chosen: Send = request.param
    return chosen


def all_genuine(seen: list[Seen]) -> None:
    """Check that every request that arrived has a valid signature and its own nonce."""
    assert all(one.public_key == KEY and one.genuine() for one in seen)
    assert len({one.authorization.nonce for one in seen}) == len(seen)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GET", {}),
        ("get", {}),
        ("DELETE", {}),
        ("HEAD", {}),
        ("OPTIONS", {}),
        ("POST", {}),
        ("POST", {"json": {"name": "café", "n": [1, 2]}}),
        ("POST", {"data": {"a": "1 2", "b": ["x", "y"]}}),
        ("PUT", {"content": bytes(range(256)) * 10}),
        ("PATCH", {"content": "tëxt"}),
        ("POST", {"files": {"f": ("ü.bin", b"\0" * 3000)}, "data": {"x": "1"}}),
    ],
)
def test_what_arrives_is_what_was_signed(server: Recorder, send: Send, method: str, options: dict[str, Any]) -> None:
    assert send(method, f"{server.url}/api/x?b=2&a=1", **options).status_code == 200
    all_genuine(server.seen)
    assert len(server.seen) == 1
    assert server.last.method == method.upper()
    assert bool(server.last.body) == (bool(options))


def test_the_check_of_these_tests_can_fail(server: Recorder) -> None:
    sync_send("POST", f"{server.url}/a?x=1", content=b"body")
    assert server.last.genuine()
    for change in ({"method": "PUT"}, {"target": "/a?x=2"}, {"body": b"bodi"}):
        assert not Seen(**{**vars(server.last), **change}).genuine()


@pytest.mark.parametrize("url", ODD)
def test_odd_urls(server: Recorder, send: Send, url: str) -> None:
    send("GET", server.url + url)
    assert server.last.target == ODD[url]
    all_genuine(server.seen)


def test_the_target_extension_is_what_is_signed(server: Recorder, send: Send) -> None:
    send("GET", f"{server.url}/a", extensions={"target": b"/b?other"})
    assert server.last.target == "/b?other"
    all_genuine(server.seen)


# --- streamed bodies ---------------------------------------------------------------------------------------


def pieces(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * 1000


async def async_pieces(count: int) -> AsyncIterator[bytes]:
    for piece in pieces(count):
        yield piece


@pytest.mark.parametrize("count", [0, 3, 3000], ids=["empty", "in memory", "on disk"])
def test_a_generator_is_spooled(server: Recorder, count: int) -> None:
    sync_send("POST", f"{server.url}/up", content=pieces(count))
    async_send("POST", f"{server.url}/up", content=async_pieces(count))
    all_genuine(server.seen)
    assert [seen.body for seen in server.seen] == [b"".join(pieces(count))] * 2
    assert server.last.header("Content-Length") == str(count * 1000)
    assert server.last.header("Transfer-Encoding") is None


def test_a_file_is_spooled(server: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"".join(pieces(2000)))
    with path.open("rb") as file:
        sync_send("PUT", f"{server.url}/up", content=file)
    with path.open("rb") as file:
        sync_send("POST", f"{server.url}/up", files={"f": file})
    all_genuine(server.seen)
    assert server.seen[0].body == path.read_bytes()
    assert path.read_bytes() in server.seen[1].body


def test_a_body_of_the_other_kind_of_client_is_refused(server: Recorder) -> None:
    with pytest.raises(InvalidInput, match="AsyncClient"):
        sync_send("POST", server.url, content=async_pieces(1))
    with pytest.raises(InvalidInput, match=r"httpx\.Client"):
        async_send("POST", server.url, content=pieces(1))
    assert not server.seen


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("body", ["bytes", "pieces"])
def test_a_redirect_is_signed_anew(server: Recorder, send: Send, status: int, body: str) -> None:
    server.redirects = {"/old": (status, "/new?to=1&at=2"), "/new": (status, f"{server.url}/newest")}
    content: Any = b"body" * 100
    if body == "pieces":
        content = async_pieces(3) if send is async_send else pieces(3)
    response = send("POST", f"{server.url}/old", content=content)
    assert (response.status_code, str(response.url)) == (200, f"{server.url}/newest")
    assert [seen.target for seen in server.seen] == ["/old", "/new?to=1&at=2", "/newest"]
    all_genuine(server.seen)
    kept = status in (307, 308)
    assert server.last.method == ("POST" if kept else "GET")
    assert server.last.body == (server.seen[0].body if kept else b"")


def test_another_origin_is_not_signed_for(server: Recorder, other: Recorder, send: Send) -> None:
    server.redirects = {"/out": (307, f"{other.url}/back")}
    other.redirects = {"/back": (307, f"{server.url}/end"), "/far": (302, "/further")}
    send("POST", f"{server.url}/out", content=b"x")
    assert [(seen.target, seen.signed) for seen in server.seen + other.seen] == [
        ("/out", True),
        ("/end", False),  # another server has chosen this target
        ("/back", False),
    ]
    server.redirects = {"/out": (302, f"{other.url}/far")}
    send("GET", f"{server.url}/out")
    assert not any(seen.signed for seen in other.seen)


def test_a_redirect_is_not_followed_unasked(server: Recorder) -> None:
    server.redirects = {"/old": (307, "/new")}
    with httpx.Client(auth=AmeshAuth(DEVICE)) as client:
        response = client.post(f"{server.url}/old", content=pieces(2))
        assert response.status_code == 307
        assert len(server.seen) == 1
        assert response.next_request is not None
        client.send(response.next_request)
    assert [seen.target for seen in server.seen] == ["/old", "/new"]
    all_genuine(server.seen)


def test_too_many_redirects_end(server: Recorder, send: Send) -> None:
    server.redirects = {"/loop": (302, "/loop")}
    with pytest.raises(httpx.TooManyRedirects):
        send("GET", f"{server.url}/loop")
    all_genuine(server.seen)


def test_through_a_proxy(server: Recorder, send: Send) -> None:
    """A forward proxy gets the whole URL. The server behind it gets the path, which is signed."""
    proxy = {"proxy": server.url}
    server.redirects = {"http://far.invalid/a": (302, "/b?x=1")}
    send("GET", "http://far.invalid/a", client=proxy)
    assert [seen.target for seen in server.seen] == ["http://far.invalid/a", "http://far.invalid/b?x=1"]
    assert [seen.genuine(seen.target.removeprefix("http://far.invalid")) for seen in server.seen] == [True, True]
    server.redirects = {"http://far.invalid/a": (302, "http://farther.invalid/b")}
    send("GET", "http://far.invalid/a", client=proxy)
    assert not server.last.signed


@pytest.mark.parametrize(
    ("named", "asked", "may"),
    [
        ("http://a/", "http://a:80/x", True),
        ("https://a/", "https://a:443/", True),
        ("http://a/", "https://a/", True),
        ("https://a/", "http://a/", False),
        ("http://a:8000/", "https://a/", False),
        ("http://a/", "https://a:8443/", False),
        ("http://a/", "http://a:81/", False),
        ("http://a/", "http://b/", False),
        ("http://a/", "https://b/", False),
        ("http://a/", "http://a.b/", False),
    ],
)
def test_which_redirects_are_signed(named: str, asked: str, may: bool) -> None:
    """httpx and requests have the same rule, so this one matters only if they change theirs."""
    assert may_sign(_origin_of(httpx.URL(named)), _origin_of(httpx.URL(asked))) is may


# --- transports without the trace extension ---------------------------------------------------------------------------


def wsgi_application(recorder: Recorder) -> Callable[[dict[str, Any], Callable[..., object]], list[bytes]]:
    """A recording server that rejects requests without a valid signature."""

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        headers = [("Authorization", environ.get("HTTP_AUTHORIZATION", ""))]
        body = environ["wsgi.input"].read()
        seen = Seen(environ["REQUEST_METHOD"], environ["PATH_INFO"] + query, headers, body)
        status, location = recorder.record(seen)
        if not (seen.header("Authorization") and seen.genuine()):
            status, location = 401, ""
        start_response(f"{status} X", [("Location", location)] if location else [])
        return [b""]

    return application


def test_redirects_over_wsgi() -> None:
    recorder = Recorder(redirects={"/a": (307, "/b?x=1"), "/b": (303, "http://app/c")})
    transport = httpx.WSGITransport(app=wsgi_application(recorder))  # type: ignore[arg-type]
    response = sync_send("POST", "http://app/a", content=b"body", client={"transport": transport})
    assert response.status_code == 200
    signed = [seen for seen in recorder.seen if seen.genuine()]
    assert [(seen.method, seen.target, seen.body) for seen in signed] == [
        ("POST", "/a", b"body"),
        ("POST", "/b?x=1", b"body"),
        ("GET", "/c", b""),
    ]
    all_genuine(signed)


def test_a_refusal_over_wsgi_is_final() -> None:
    recorder = Recorder(redirects={"/no": (401, ""), "/out": (302, "http://other/no")})
    transport = httpx.WSGITransport(app=wsgi_application(recorder))  # type: ignore[arg-type]
    assert sync_send("GET", "http://app/no", client={"transport": transport}).status_code == 401
    assert len(recorder.seen) == 1
    assert sync_send("GET", "http://app/out", client={"transport": transport}).status_code == 401
    assert len(recorder.seen) == 3
    assert not recorder.last.header("Authorization")


def test_redirects_over_asgi() -> None:
    recorder = Recorder(redirects={"/a": (307, "/b")})

    async def application(scope: Any, receive: Any, answer: Any) -> None:
        body = (await receive())["body"]
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        status, location = recorder.record(Seen(scope["method"], scope["raw_path"].decode(), headers, body))
        status = status if recorder.last.genuine() else 401
        await answer({"type": "http.response.start", "status": status, "headers": [(b"location", location.encode())]})
        await answer({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(app=application)
    response = async_send("POST", "http://app/a", content=b"body", client={"transport": transport})
    assert response.status_code == 200
    all_genuine([seen for seen in recorder.seen if seen.genuine()])


def test_an_upgrade_to_https_is_signed_and_a_downgrade_is_not() -> None:
    seen: list[tuple[str, bool]] = []
    hops = {"http://host/a": "https://host/a", "https://host/a": "http://host/b"}

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), "Authorization" in request.headers))
        location = hops.get(str(request.url))
        return httpx.Response(302, headers={"Location": location}) if location else httpx.Response(401)

    sync_send("GET", "http://host/a", client={"transport": httpx.MockTransport(answer)})
    assert seen == [("http://host/a", True), ("https://host/a", True), ("http://host/b", False)]


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_request_sent_twice_is_signed_twice(server: Recorder) -> None:
    with httpx.Client(auth=AmeshAuth(DEVICE)) as client:
        request = client.build_request("POST", f"{server.url}/x", content=pieces(2))
        client.send(request)
        client.send(request)
    assert len(server.seen) == 2
    all_genuine(server.seen)


def test_the_callers_own_trace_is_called(server: Recorder) -> None:
    server.redirects = {"/a": (302, "/b")}
    events: list[str] = []

    async def async_trace(event: str, info: dict[str, Any]) -> None:
        events.append(event)

    sync_send("GET", f"{server.url}/a", extensions={"trace": lambda event, info: events.append(event)})
    first = events.copy()
    events.clear()
    async_send("GET", f"{server.url}/a", extensions={"trace": async_trace})
    for found in (first, events):
        assert found.count("http11.send_request_headers.started") == 2
        assert "http11.response_closed.complete" in found


def test_one_auth_for_many_threads(server: Recorder) -> None:
    with httpx.Client(auth=AmeshAuth(DEVICE)) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.post(f"{server.url}/x?n={n}", content=b"%d" % n), range(64)))
    assert len(server.seen) == 64
    all_genuine(server.seen)


def test_a_foreign_authorization_is_replaced(server: Recorder, send: Send) -> None:
    send("GET", server.url, headers={"Authorization": "Basic eDp5"})
    all_genuine(server.seen)


def test_fetch(server: Recorder) -> None:
    server.redirects = {"/old": (307, "/new")}
    assert fetch(f"{server.url}/x", device=DEVICE).status_code == 200
    fetch(f"{server.url}/x?a=1", "POST", body=b"raw", headers={"X-Y": "z"}, device=DEVICE)
    assert (server.last.target, server.last.body, server.last.header("X-Y")) == ("/x?a=1", b"raw", "z")
    fetch(httpx.URL(server.url), method="put", params={"q": "ä b"}, json={"a": 1}, device=DEVICE)
    assert (server.last.method, server.last.target) == ("PUT", "/?q=%C3%A4+b")
    fetch(server.url, "POST", data={"a": "1"}, device=DEVICE)
    assert server.last.body == b"a=1"
    fetch(server.url, "POST", body=io.BytesIO(b"file"), device=DEVICE)
    assert server.last.body == b"file"
    assert fetch(f"{server.url}/old", device=DEVICE).status_code == 307
    assert fetch(f"{server.url}/old", device=DEVICE, follow_redirects=True).status_code == 200
    all_genuine(server.seen)
    with pytest.raises(httpx.ConnectError):
        fetch("http://127.0.0.1:1/", device=DEVICE, timeout=5)
