"""Bodies of every kind over HTTP: the view gets the verified body, whatever length the client declares."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator

import pytest

from tests.support.services import SERVERS, Server
from tests.verification.wire import (
    DOORS,
    LIMIT,
    Answer,
    Wire,
    World,
    exchange,
    forget_peak,
    head,
    multipart,
    resident_memory,
    said,
    send,
    sha256,
    signed,
)

pytestmark = pytest.mark.process

BINARY = bytes(range(256)) * 300
FORM, FORM_BODY = "application/x-www-form-urlencoded", "name=Käthe+B%C3%B6ll&tag=1&tag=2&empty=".encode()

MEBIBYTE = 1 << 20
#: Maximum growth of a server process during an upload of 200 MB.
GROWTH = 60 * MEBIBYTE


#: Servers that support chunked bodies; runserver does not.
CHUNKED = [name for name in SERVERS if name != "runserver"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", [*SERVERS, *(f"{name} chunked" for name in CHUNKED)])
def test_bodies_reach_the_view(wire: Wire, kind: str, door: str) -> None:
    name, _, chunked = kind.partition(" ")
    server = wire.server(name)
    parts = {"photo": ("ö.jpg", BINARY), "nothing": ("empty", b"")}
    kind, form = multipart({"title": "Käthe", "note": "a\r\nb"}, parts)

    def sent(content_type: str, body: bytes) -> dict[str, object]:
        headers = {"Content-Type": content_type}
        answer = signed(server, wire.laptop, "POST", door, headers, body, chunked=bool(chunked))
        assert answer.status == 200, answer.body
        found: dict[str, object] = answer.json
        return found

    for body in (b"", b"{}", BINARY, bytes(LIMIT)):
        expected = {"length": len(body), "sha256": sha256(body)}
        assert sent("application/octet-stream", body)["body"] == expected
    assert sent(FORM, FORM_BODY)["fields"] == {"name": ["Käthe Böll"], "tag": ["1", "2"], "empty": [""]}
    found = sent(kind, form)
    assert found["fields"] == {"title": ["Käthe"], "note": ["a\r\nb"]}
    assert found["files"] == {
        name: {"name": filename, "length": len(content), "sha256": sha256(content)}
        for name, (filename, content) in parts.items()
    }
    document = {"naïve": ["☃", 1.5, None]}
    raw = json.dumps(document).encode()
    found = sent("application/json", raw)
    assert found["data"] == document if door == "/drf" else found["body"] == {"length": len(raw), "sha256": sha256(raw)}


def test_chunked_bodies_are_rejected_by_runserver(wire: Wire) -> None:
    for door in DOORS:
        answer = signed(wire.server("runserver"), wire.laptop, "POST", door, body=b"hello", chunked=True)
        assert (answer.status, answer.error) == (401, "unauthorized")


@pytest.mark.parametrize("kind", CHUNKED)
def test_chunked_bodies_over_the_limit_are_rejected(wire: Wire, kind: str) -> None:
    """gunicorn reads only the body of a known device, so its length must not be visible in the response."""
    expected = (401, "unauthorized") if kind == "gunicorn" else (413, "payload_too_large")
    for door in DOORS:
        for signer in (wire.laptop, wire.stranger):
            answer = signed(wire.server(kind), signer, "POST", door, body=bytes(LIMIT + 1), chunked=True)
            assert (answer.status, answer.error) == expected


@pytest.mark.parametrize("kind", ["gunicorn", "runserver"])
def test_a_declared_length_over_the_limit_is_rejected_before_the_body_arrives(wire: Wire, kind: str) -> None:
    """For everybody: the response must not tell who is in the allow list."""
    for door in DOORS:
        for signer in (wire.laptop, wire.stranger, wire.lost, wire.target):
            headers = {"Authorization": signer.header("POST", door), "Content-Length": str(10**12)}
            answer = exchange(wire.server(kind).port, [head("POST", door, headers)], seconds=5)
            assert (answer.status, answer.error) == (413, "payload_too_large")


#: Chunked bodies that gunicorn cannot read.
UNREADABLE = {
    "size": b"zz\r\nhello\r\n0\r\n\r\n",
    "end": b"5\r\nhello",
    "trailer": b"5\r\nhello\r\n0\r\nna me: x\r\n\r\n",
    "bare line feed": b"5\r\nhello\r\n0\r\nname: x\ny: z\r\n\r\n",
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_body_that_cannot_be_read_is_a_rejected_request(wire: Wire, case: str) -> None:
    server = wire.server("gunicorn")
    for door in DOORS:
        for signer in (wire.laptop, wire.stranger):
            headers = {"Authorization": signer.header("POST", door, b"hello"), "Transfer-Encoding": "chunked"}
            with said(server) as log:
                answer = exchange(server.port, [head("POST", door, headers), UNREADABLE[case]], end=True)
            assert (answer.status, answer.error) == (401, "unauthorized")
            assert not [line for line in log if "Traceback" in line], log
            assert any("body_unreadable" in line for line in log) == (signer is wire.laptop), log


def test_a_consumed_body_is_an_error_whoever_signed(wire: Wire, wire_server: Server) -> None:
    for signer in (wire.laptop, wire.stranger):
        answer = signed(wire_server, signer, "POST", "/drf", {"X-Meddle": "read"}, b"hello")
        assert (answer.status, answer.error) == (500, "body_parser_ordering_error")


def test_a_large_body_is_not_read_if_the_timestamp_is_out_of_range(wire: Wire) -> None:
    """gunicorn, because the other servers read a body by themselves before or after the response."""
    server, length = wire.server("gunicorn"), 1 << 17
    chunk = b"%x\r\n" % (2 * length) + bytes(length)
    for door in DOORS:
        for more, part in (({"Content-Length": str(length)}, b""), ({"Transfer-Encoding": "chunked"}, chunk)):
            stale = wire.laptop.header("POST", door, bytes(length), ts=int(time.time()) - 60)
            with said(server) as log:
                answer = exchange(server.port, [head("POST", door, {"Authorization": stale, **more}), part], seconds=5)
            assert (answer.status, answer.error) == (401, "unauthorized")
            assert any("timestamp_out_of_range (the body was not read)" in line for line in log), log


def test_a_small_body_is_read_so_that_a_device_learns_that_its_clock_is_wrong(wire: Wire, wire_server: Server) -> None:
    body = bytes(1 << 16)
    stale = wire.laptop.header("POST", "/drf", body, ts=int(time.time()) - 60)
    assert send(wire_server, "POST", "/drf", {"Authorization": stale}, body).error == "timestamp_out_of_range"


# --- a client that declares a wrong length ----------------------------------------------------------------------------


def claim(
    wire: Wire, server: Server, door: str, body: bytes, claimed: str, signed_body: bytes, *, end: bool = True
) -> Answer:
    headers = {"Authorization": wire.laptop.header("POST", door, signed_body), "Content-Length": claimed}
    return exchange(server.port, [head("POST", door, headers), body], end=end, seconds=10)


@pytest.mark.parametrize("door", DOORS)
def test_more_declared_than_sent(wire: Wire, wire_server: Server, door: str) -> None:
    for signed_body in (b"hello", b"hello" + bytes(5), b""):
        status = claim(wire, wire_server, door, b"hello", "10", signed_body).status
        # An ASGI server waits for the rest, and then closes the connection without an answer.
        assert status in ((0, 400) if "daphne" in wire_server.argv or "uvicorn" in wire_server.argv else (401,))


@pytest.mark.parametrize("door", DOORS)
def test_less_declared_than_sent(wire: Wire, wire_server: Server, door: str) -> None:
    answer = claim(wire, wire_server, door, b"hello world", "5", b"hello world", end=False)
    assert (answer.status, answer.error) == (401, "unauthorized")
    answer = claim(wire, wire_server, door, b"hello world", "5", b"hello", end=False)
    assert (answer.status, answer.json["body"]) == (200, {"length": 5, "sha256": sha256(b"hello")})


@pytest.mark.parametrize("claimed", ["-5", "abc", "5, 6", "5\r\nContent-Length: 6", "0x5", "5_0", "1e1", "\u0665", ""])
def test_invalid_lengths(wire: Wire, wire_server: Server, claimed: str) -> None:
    for signed_body in (b"hello", b""):
        answer = claim(wire, wire_server, "/decorator/sync", b"hello", claimed, signed_body)
        if answer.status == 200:  # the server accepts the length: the view must get the signed body
            assert answer.json["body"] == {"length": len(signed_body), "sha256": sha256(signed_body)}
        else:
            assert answer.status in (0, 400, 401)


@pytest.mark.parametrize("door", DOORS)
def test_length_and_chunked_encoding_at_once(wire: Wire, wire_server: Server, door: str) -> None:
    """Request smuggling: a server that believes one of the two must not verify the body of the other."""
    wire_body = b"5\r\nhello\r\n0\r\n\r\n"
    for signed_body in (b"hello", b"", wire_body):
        authorization = wire.laptop.header("POST", door, signed_body)
        pairs = [("Authorization", authorization), ("Content-Length", str(len(wire_body)))]
        raw = [head("POST", door, [*pairs, ("Transfer-Encoding", "chunked")]), wire_body]
        answer = exchange(wire_server.port, raw, end=True, seconds=10)
        if answer.status == 200:
            assert answer.json["body"] == {"length": len(signed_body), "sha256": sha256(signed_body)}
        else:
            assert answer.status in (0, 400, 401)


# --- another middleware reads the body first -----------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_a_body_that_is_still_complete_is_verified(wire: Wire, wire_server: Server, door: str) -> None:
    def sent(meddle: str, content_type: str, body: bytes, method: str = "POST") -> int:
        headers = {"X-Meddle": meddle, "Content-Type": content_type}
        return signed(wire_server, wire.laptop, method, door, headers, body).status

    assert sent("body", "application/octet-stream", BINARY) == 200
    assert sent("body", FORM, FORM_BODY) == 200
    assert sent("post", FORM, FORM_BODY) == 200
    # request.POST was read, but there was nothing to parse: the raw body is complete.
    assert sent("post", "application/json", b"{}") == 200
    assert sent("post", "application/json", b"", "GET") == 200
    tampered = {"X-Meddle": "body", "Authorization": wire.laptop.header("POST", door, b"hello")}
    assert send(wire_server, "POST", door, tampered, b"hallo").error == "unauthorized"


@pytest.mark.parametrize("door", DOORS)
def test_a_consumed_body_is_an_error_of_the_server(wire: Wire, wire_server: Server, door: str) -> None:
    kind, form = multipart({"title": "Käthe"}, {"photo": ("ö.jpg", BINARY)})
    for meddle, content_type, body in (("post", kind, form), ("read", "text/plain", b"hello")):
        headers = {"X-Meddle": meddle, "Content-Type": content_type}
        answer = signed(wire_server, wire.laptop, "POST", door, headers, body)
        assert (answer.status, answer.error) == (500, "body_parser_ordering_error")


# --- 200 MB ---------------------------------------------------------------------------------------------------------


class Upload:
    """A multipart form with one large file, which is generated while it is sent."""

    def __init__(self, mebibytes: int) -> None:
        self.content_type, form = multipart({"title": "large"}, {"file": ("large.bin", b"SPLIT")})
        self._before, self._after = form.split(b"SPLIT")
        self._piece = bytes(range(256)) * (MEBIBYTE // 256)
        self._pieces = mebibytes
        self.length = len(self._before) + mebibytes * MEBIBYTE + len(self._after)
        self.file = {"name": "large.bin", "length": mebibytes * MEBIBYTE, "sha256": _sha256([self._piece] * mebibytes)}
        self.body_hash = _sha256(self)

    def __iter__(self) -> Iterator[bytes]:
        yield from (self._before, *[self._piece] * self._pieces, self._after)

    def sent(self, server: Server, world: World, door: str) -> Answer:
        headers = [("Content-Type", self.content_type), ("Content-Length", str(self.length))]
        headers.append(("Authorization", world.laptop.header("POST", door, self.body_hash)))
        return exchange(server.port, [head("POST", door, headers), *self])


def _sha256(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn", "runserver"])
def test_200_megabytes_are_verified_and_parsed_without_being_kept_in_memory(world: World, kind: str) -> None:
    upload = Upload(200)
    with world.serve(kind) as server:
        assert (
            signed(server, world.laptop, "POST", "/drf", body=bytes(4 * MEBIBYTE)).status == 200
        )  # imports everything
        for door in ("/middleware/async", "/decorator/sync", "/drf"):
            before = resident_memory(server, "VmRSS")
            forget_peak(server)
            answer = upload.sent(server, world, door)
            assert (answer.status, answer.json["files"]["file"]) == (200, upload.file)
            assert resident_memory(server, "VmHWM") - before < GROWTH


def test_a_large_upload_through_daphne(world: World) -> None:
    """Without a limit on memory: daphne itself keeps several copies of a body in memory, even for an unprotected view."""
    upload = Upload(20)
    with world.serve("daphne") as server:
        for door in ("/middleware/async", "/decorator/sync", "/drf"):
            answer = upload.sent(server, world, door)
            assert (answer.status, answer.json["files"]["file"]) == (200, upload.file)


def test_one_wrong_byte_in_a_large_upload_is_rejected(world: World) -> None:
    upload = Upload(20)
    upload.body_hash = _sha256([b"x", *upload])
    with world.serve("gunicorn") as server:
        assert upload.sent(server, world, "/decorator/sync").error == "unauthorized"
