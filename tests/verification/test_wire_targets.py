"""Request targets over HTTP: the target on the request line must be the signed one, and ambiguous targets are rejected."""

from __future__ import annotations

import pytest

from tests.support import services
from tests.support.services import SERVERS, Server
from tests.verification.wire import Wire, World, said, send, signed

pytestmark = pytest.mark.process

RAW = [name for name in SERVERS if name != "runserver"]

PLAIN = {
    "utf-8": ("/k%C3%A4the/%E2%98%83", "/käthe/☃", {}),
    "space and plus": ("/a%20b+c", "/a b+c", {}),
    "percent": ("/100%25", "/100%", {}),
    "quoted question mark": ("/a%3Fb?c=d", "/a?b", {"c": ["d"]}),
    "semicolon": ("/a;x=1/b", "/a;x=1/b", {}),
    "sub-delims": ("/!$&'()*+,=:@", "/!$&'()*+,=:@", {}),
    "double slash inside": ("/a//b", "/a//b", {}),
    "dots that are no segments": ("/a..b/...", "/a..b/...", {}),
    "repeated": ("?a=2&b=3&a=1&a=", "", {"a": ["2", "1", ""], "b": ["3"]}),
    "plus": ("?a=b+c&d=%2B&e=%20", "", {"a": ["b c"], "d": ["+"], "e": [" "]}),
    "utf-8 query": ("?n=K%C3%A4the&%E2%98%83=1", "", {"n": ["Käthe"], "☃": ["1"]}),
    "empty query": ("?", "", {}),
    "nameless": ("?=1&&x", "", {"": ["1"], "x": [""]}),
    "question mark in value": ("?a=b?c", "", {"a": ["b?c"]}),
    "slash in query": ("?next=/a/../b", "", {"next": ["/a/../b"]}),
    "null byte": ("?a=%00", "", {"a": ["\x00"]}),
}
#: What runserver decodes without a trace, so that it is not the target that was signed.
HIDDEN = {
    "encoded slash": ("/a%2Fb", "/a/b"),
    "lower-case encoded slash": ("/a%2fb/%2f", "/a/b//"),
    "needless quoting": ("/%41%7E", "/A~"),
    "lower-case hex": ("/k%c3%a4the", "/käthe"),
    "quoted plus": ("/a%2Bb", "/a+b"),
    "not utf-8": ("/%FF", None),
}
VIEWS = ("/middleware/async", "/decorator/sync", "/drf")


@pytest.mark.parametrize("door", VIEWS)
@pytest.mark.parametrize("case", PLAIN)
def test_targets_are_verified_as_sent_on_the_wire(wire: Wire, wire_server: Server, case: str, door: str) -> None:
    rest, path, query = PLAIN[case]
    answer = signed(wire_server, wire.laptop, "POST", door + rest)
    assert answer.status == 200, answer.body
    assert (answer.json["path"], answer.json["query"]) == (door + path, query)


@pytest.mark.parametrize("door", VIEWS)
@pytest.mark.parametrize("case", HIDDEN)
def test_targets_that_a_server_must_pass_on_unchanged(wire: Wire, wire_server: Server, case: str, door: str) -> None:
    rest, path = HIDDEN[case]
    answer = signed(wire_server, wire.laptop, "POST", door + rest)
    if "runserver" in wire_server.argv:
        assert (answer.status, answer.error) == (401, "unauthorized")
    else:
        assert answer.status == 200, answer.body
        assert path is None or answer.json["path"] == door + path


def test_an_encoded_slash_is_not_a_slash(wire: Wire, wire_server: Server) -> None:
    """An attacker on the network cannot turn one into the other."""
    for sent, other in (("/drf/a%2Fb", "/drf/a/b"), ("/drf/a/b", "/drf/a%2Fb")):
        answer = send(wire_server, "GET", sent, {"Authorization": wire.laptop.header("GET", other)})
        if "runserver" in wire_server.argv and other == "/drf/a/b":
            assert answer.json["path"] == other  # runserver and the view see no difference
        else:
            assert (answer.status, answer.error) == (401, "unauthorized")


#: Targets that two parsers may read in different ways. `{}` is a door.
AMBIGUOUS = [
    "//127.0.0.1{}",
    "/{}",
    "//",
    "//a:b/x",
    "{}\\x",
    "{}#x",
    "{}?a=#x",
    "{}?a=\\x",
    "{}/a/../b",
    "{}/./b",
    "{}/..",
    "{}/.",
    "{}/%2e%2e/b",
    "{}/%2E/b",
    "{}/.%2e/b",
    "{}/a/..%2fb",
    "{}/a%5C..%5Cb",
    "{}/a\\..\\b",
    "{}??a=1",
    "{}?\u00e9=1",
    "{}/\u00e9",
    "{}/\x01",
    "{}/\x7f",
    "{}/a\tb",
    "{}/a b",
    "{} ",
    "{}?a=b c",
    "{}\x0bx",
    "{}\x00",
    "http://127.0.0.1{}",
    "https://elsewhere{}",
    "HTTP://127.0.0.1{}?a=b",
    "*",
    "",
    "?a=b",
    "drf",
    "127.0.0.1:80",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_ambiguous_targets_are_rejected(wire: Wire, wire_server: Server, target: str) -> None:
    for door in VIEWS:
        for method in ("GET", "POST", "OPTIONS"):
            sent = target.format(door)
            answer = signed(wire_server, wire.laptop, method, sent)
            assert answer.status == 0 or 400 <= answer.status < 500, (answer.status, answer.body)


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("target", AMBIGUOUS)
def test_ambiguous_targets_are_rejected_with_the_signature_of_a_plausible_target(
    wire: Wire, kind: str, target: str
) -> None:
    for door in VIEWS:
        for meant in (door, f"{door}/b", f"{door}/x", f"{door}?a=b", f"{door}?a=1"):
            headers = {"Authorization": wire.laptop.header("GET", meant)}
            answer = send(wire.server(kind), "GET", target.format(door), headers)
            assert answer.status == 0 or 400 <= answer.status < 500, (answer.status, answer.body)


def test_the_log_has_the_reason(wire: Wire, wire_server: Server) -> None:
    with said(wire_server) as log:
        assert signed(wire_server, wire.laptop, "GET", "/drf/a/../b").status == 401
    assert any("ambiguous_target (dot segment)" in line and wire.laptop.device_id in line for line in log)


def test_a_query_in_another_charset_is_ambiguous(wire: Wire, wire_server: Server) -> None:
    """Django decodes the query by the charset of Content-Type, which is not signed."""
    for door in VIEWS:
        latin = {"Content-Type": "text/plain; charset=latin-1"}
        assert signed(wire_server, wire.laptop, "POST", f"{door}?a=%C3%A4", latin).error == "unauthorized"
        assert signed(wire_server, wire.laptop, "POST", f"{door}?a=b", latin).status == 200
        utf8 = {"Content-Type": "text/plain; charset=UTF-8"}
        assert signed(wire_server, wire.laptop, "POST", f"{door}?a=%C3%A4", utf8).json["query"] == {"a": ["ä"]}


#: Charsets in which Django reads a query without percent-encoding as another one.
OTHER_READINGS = {
    "utf-7": "?note=x+ACY-admin+AD0-1",
    "cp037": "?admin=0",
    "cp500": "?admin=0&x=1",
    "utf-16": "?admin=0",
}


@pytest.mark.parametrize("charset", OTHER_READINGS)
def test_a_charset_does_not_give_the_signed_query_another_meaning(
    wire: Wire, wire_server: Server, charset: str
) -> None:
    for door in VIEWS:
        headers = {"Content-Type": f"text/plain; charset={charset}"}
        with said(wire_server) as log:
            answer = signed(wire_server, wire.laptop, "POST", door + OTHER_READINGS[charset], headers)
        assert (answer.status, answer.error) == (401, "unauthorized")
        assert any("ambiguous_target (charset" in line for line in log), log
        for same in ("utf8", "U8", "no-such-charset"):
            answer = signed(
                wire_server, wire.laptop, "POST", f"{door}?a=%C3%A4", {"Content-Type": f"text/plain; charset={same}"}
            )
            assert answer.json["query"] == {"a": ["ä"]}


@pytest.mark.parametrize("name", ["Daphne-Root-Path", "SCRIPT_NAME", "Script-Name", "PATH_INFO"])
def test_a_header_does_not_lead_to_another_view(wire: Wire, wire_server: Server, name: str) -> None:
    """daphne accepts the first one from anyone, gunicorn accepts the second one from a proxy on the same machine."""
    target = "/middleware/sync/drf"
    taken = {"Daphne-Root-Path": "daphne", "SCRIPT_NAME": "gunicorn"}.get(name, "none")
    with said(wire_server) as log:
        answer = signed(
            wire_server, wire.laptop, "GET", target, {name: "/drf" if name == "PATH_INFO" else "/middleware/sync"}
        )
    if taken in wire_server.argv:
        assert (answer.status, answer.error) == (401, "unauthorized")
        assert any("ambiguous_target (script name" in line for line in log)
    else:
        assert (answer.status, "user" in answer.json) == (200, False)


#: Server → options and environment that mount it below /mesh, and the path that it gets for /mesh/drf.
MOUNTED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "gunicorn": ([], {"SCRIPT_NAME": "/mesh"}, "/mesh/drf"),
    "uvicorn": (["--root-path", "/mesh"], {}, "/drf"),
    "daphne": (["--root-path", "/mesh"], {}, "/mesh/drf"),
}


@pytest.mark.parametrize("kind", MOUNTED)
def test_mounted_below_a_path(world: World, kind: str) -> None:
    """FORCE_SCRIPT_NAME sets the mount point, as in Django. Headers that set another one are ignored."""
    options, environment, sent = MOUNTED[kind]
    argv = services.SERVERS[kind]()
    argv = [*argv[:-1], *options, argv[-1]] if kind == "daphne" else [*argv, *options]
    with services.serve(argv, world.environment(TEST_SCRIPT_NAME="/mesh", **environment)) as server:
        for rest in ("", "/a%2Fb?x=%C3%A4"):
            headers = {"Authorization": world.laptop.header("GET", f"/mesh/drf{rest}")}
            answer = send(server, "GET", sent + rest, headers)
            assert (answer.status, "user" in answer.json) == (200, True), answer.body
        target = "/mesh/middleware/sync/drf"
        for name in ("Daphne-Root-Path", "SCRIPT_NAME"):
            headers = {"Authorization": world.laptop.header("GET", target), name: "/mesh/middleware/sync"}
            answer = send(server, "GET", target if sent.startswith("/mesh") else target.removeprefix("/mesh"), headers)
            assert answer.status == 401 or "user" not in answer.json


def test_one_signature_does_not_fit_two_views(world: World) -> None:
    """A proxy on the same machine passes a header SCRIPT_NAME on, which gunicorn accepts and Django routes by."""
    settings = {"TEST_SCRIPT_NAME": "/middleware/sync", "SCRIPT_NAME": "/middleware/sync"}
    target = "/middleware/sync/drf"
    with world.serve("gunicorn", **settings) as server:
        assert signed(server, world.laptop, "GET", target).json["user"] == world.laptop.device_id
        for name in ("/", "/middleware", "/middleware/sync/drf"):
            answer = signed(server, world.laptop, "GET", target, {"SCRIPT_NAME": name})
            assert answer.status in (401, 404), name
    with world.serve("gunicorn", TEST_SCRIPT_NAME="/middleware/sync") as server:
        answer = signed(server, world.laptop, "GET", target)
        assert (answer.status, answer.error) == (401, "unauthorized")
        answer = signed(server, world.laptop, "GET", target, {"SCRIPT_NAME": "/middleware/sync"})
        assert answer.json["user"] == world.laptop.device_id


def test_a_stripped_prefix_below_a_path(world: World) -> None:
    settings = {"TEST_SCRIPT_NAME": "/mesh", "TEST_STRIPPED_PREFIX": "/mesh"}
    with world.serve("gunicorn", **settings) as server:
        headers = {"Authorization": world.laptop.header("GET", "/mesh/drf/a%2Fb?x=1")}
        assert send(server, "GET", "/drf/a%2Fb?x=1", headers).json["query"] == {"x": ["1"]}
        headers = {"Authorization": world.laptop.header("GET", "/mesh/mesh/drf"), "SCRIPT_NAME": "/mesh"}
        assert send(server, "GET", "/mesh/drf", headers).status == 401


def test_a_request_that_lacks_the_added_prefix_is_rejected(world: World) -> None:
    with world.serve("uvicorn", TEST_ADDED_PREFIX="/drf") as server:
        headers = {"Authorization": world.laptop.header("GET", "/a?b=c")}
        assert send(server, "GET", "/drf/a?b=c", headers).json["query"] == {"b": ["c"]}
        for path in ("/drfx", "/drf", "/open", "/decorator/sync"):
            for signer in (world.laptop, world.stranger):
                with said(server) as log:
                    answer = signed(server, signer, "GET", path)
                assert answer.status in (401, 404) or path == "/open", (path, answer.status)
                if path in ("/drf", "/decorator/sync"):
                    assert any("lacks PROXY_ADDED_PREFIX" in line for line in log), log


def test_the_query_that_django_reads_is_that_of_the_request_line(world: World) -> None:
    """Rewriting in front of a WSGI application changes QUERY_STRING, and not REQUEST_URI."""
    with services.serve(
        services.gunicorn("tests.verification.wire_rewriting:application"), world.environment()
    ) as server:
        assert signed(server, world.laptop, "GET", "/drf?a=1").status == 200
        for target in ("/drf?a=1", "/drf"):
            with said(server) as log:
                answer = signed(server, world.laptop, "GET", target, {"X-Rewrite": "admin=1"})
            assert (answer.status, answer.error) == (401, "unauthorized")
            assert any("is not QUERY_STRING" in line for line in log), log
