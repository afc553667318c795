"""AmeshRequestsAuth with a real server: the signed request is the one that arrives, with every kind of body and through redirects."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from amesh_django.test import EphemeralDevice
from authmesh.client import AmeshRequestsAuth
from authmesh.protocol import InvalidInput
from tests.support.recording import Recorder, Seen

DEVICE = EphemeralDevice("client")
AUTH = AmeshRequestsAuth(DEVICE)

#: URLs that parsers and libraries normalize, and the target that requests and urllib3 send for each.
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
    "/a/%2e%2e/b": "/a/../b",
    "/semi;colon=1,2/@:!$&'()*": "/semi;colon=1,2/@:!$&'()*",
    "/tilde/~user/%7Euser": "/tilde/~user/~user",
    "/q?u=http://h/p?x#fragment": "/q?u=http://h/p?x",
    "/100%/zz%zz": "/100%25/zz%25zz",
}


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.auth = AUTH
        yield opened


def all_genuine(seen: list[Seen]) -> None:
    """Check that every request that arrived has a valid signature and its own nonce."""
    assert all(one.public_key == DEVICE.identity.public_key and one.genuine() for one in seen)
    assert len({one.authorization.nonce for one in seen}) == len(seen)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GET", {}),
        ("get", {}),
        ("DELETE", {}),
        ("HEAD", {}),
        ("POST", {}),
        ("POST", {"json": {"name": "café", "n": [1, 2]}}),
        ("POST", {"data": {"a": "1 2", "b": ["x", "y"]}}),
        ("PUT", {"data": bytes(range(256)) * 10}),
        ("PATCH", {"data": "tëxt"}),
        ("POST", {"files": {"f": ("ü.bin", b"\0" * 3000)}, "data": {"x": "1"}}),
        ("POST", {"data": io.BytesIO(b"file" * 50_000)}),
    ],
)
def test_what_arrives_is_what_was_signed(server: Recorder, method: str, options: dict[str, Any]) -> None:
    assert requests.request(method, f"{server.url}/api/x?b=2&a=1", auth=AUTH, **options, timeout=5).status_code == 200
    all_genuine(server.seen)
    assert len(server.seen) == 1
    assert bool(server.last.body) == bool(options)


@pytest.mark.parametrize("url", ODD)
def test_odd_urls(server: Recorder, session: requests.Session, url: str) -> None:
    session.get(server.url + url)
    assert server.last.target == ODD[url]
    all_genuine(server.seen)


def test_a_file_is_hashed_from_where_it_stands(server: Recorder, session: requests.Session, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"skipped" + b"sent" * 100_000)
    server.redirects = {"/old": (307, "/new")}
    with path.open("rb") as file:
        file.seek(7)
        session.post(f"{server.url}/old", data=file)
    assert [seen.body for seen in server.seen] == [b"sent" * 100_000] * 2
    all_genuine(server.seen)


def test_what_can_be_read_but_once_is_refused(session: requests.Session) -> None:
    with pytest.raises(InvalidInput, match="Pass bytes or a seekable file"):
        session.post("http://127.0.0.1:1/", data=(piece for piece in [b"a", b"b"]))
    with pytest.raises(InvalidInput, match="'rb'"):
        session.post("http://127.0.0.1:1/", data=io.StringIO("text"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_signed_anew(server: Recorder, session: requests.Session, status: int) -> None:
    server.redirects = {"/old": (status, "/new%2fer?to=1&at=2[]"), "/new%2Fer": (status, f"{server.url}/newest")}
    response = session.post(f"{server.url}/old", data=b"body" * 100)
    assert (response.status_code, response.url) == (200, f"{server.url}/newest")
    assert [seen.target for seen in server.seen] == ["/old", "/new%2Fer?to=1&at=2%5B%5D", "/newest"]
    all_genuine(server.seen)
    kept = status in (307, 308)
    assert server.last.method == ("POST" if kept else "GET")
    assert server.last.body == (server.seen[0].body if kept else b"")
    sent = [one.request.headers["Authorization"] for one in (*response.history, response)]
    assert sent == [seen.header("Authorization") for seen in server.seen]


def test_another_origin_is_not_signed_for(server: Recorder, other: Recorder, session: requests.Session) -> None:
    server.redirects = {"/out": (307, f"{other.url}/back")}
    other.redirects = {"/back": (307, f"{server.url}/end"), "/far": (302, "/further")}
    session.post(f"{server.url}/out", data=b"x")
    assert [(seen.target, seen.signed) for seen in server.seen + other.seen] == [
        ("/out", True),
        ("/end", False),  # another server has chosen this target
        ("/back", False),
    ]
    server.redirects = {"/out": (302, f"{other.url}/far")}
    session.get(f"{server.url}/out")
    assert not any(seen.signed for seen in other.seen)


def test_another_name_of_the_same_machine_is_another_origin(server: Recorder, session: requests.Session) -> None:
    server.redirects = {"/a": (302, server.url.replace("127.0.0.1", "localhost") + "/b")}
    session.get(f"{server.url}/a")
    assert [(seen.target, seen.signed) for seen in server.seen] == [("/a", True), ("/b", False)]


def test_a_redirect_is_not_followed_unasked(server: Recorder, session: requests.Session) -> None:
    server.redirects = {"/old": (307, "/new")}
    response = session.post(f"{server.url}/old", data=b"x", allow_redirects=False)
    assert (response.status_code, len(server.seen)) == (307, 1)
    assert response.next is not None
    session.send(response.next)
    assert [seen.target for seen in server.seen] == ["/old", "/new"]
    all_genuine(server.seen)


def test_too_many_redirects_end(server: Recorder, session: requests.Session) -> None:
    server.redirects = {"/loop": (302, "/loop")}
    with pytest.raises(requests.TooManyRedirects):
        session.get(f"{server.url}/loop")
    all_genuine(server.seen)


def test_cookies_survive_the_redirect(server: Recorder, session: requests.Session) -> None:
    """Signing prepares the next request in advance. That must not change it."""
    server.redirects = {"/a": (302, "/b")}
    session.cookies.set("c", "1")
    session.get(f"{server.url}/a", stream=True).close()
    assert [seen.header("Cookie") for seen in server.seen] == ["c=1", "c=1"]
    all_genuine(server.seen)


@pytest.mark.process
def test_without_requests_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['requests'] = None\n"
        "from authmesh.client import AmeshRequestsAuth\n"
        "try: AmeshRequestsAuth()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'amesh-django[requests]'" in done.stdout
