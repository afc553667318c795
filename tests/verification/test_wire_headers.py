"""Authorization headers over HTTP that our clients never send, and the contents of the log."""

from __future__ import annotations

import os
import time

import pytest

from authmesh.protocol.encoding import b64encode, b64url_encode
from authmesh.protocol.keys import GROUP_ORDER
from tests.support.services import Server
from tests.verification.wire import Answer, Wire, exchange, head, said, send, signed

DOORS = ("/middleware/async", "/decorator/sync", "/drf")
MARK = "s3cret-mark"


def with_value(server: Server, door: str, *values: str) -> Answer:
    return send(server, "GET", door, [("Authorization", value) for value in values])


@pytest.mark.parametrize("door", DOORS)
def test_the_header_has_at_most_1024_characters(wire: Wire, wire_server: Server, door: str) -> None:
    def padded(length: int) -> str:
        header = wire.laptop.header("GET", door)
        return header.replace(",ts=", "," + " " * (length - len(header)) + "ts=")

    assert with_value(wire_server, door, padded(1024)).status == 200
    answer = with_value(wire_server, door, padded(1025))
    assert (answer.status, answer.error) == (400, "malformed_header")


@pytest.mark.parametrize("door", DOORS)
def test_a_nonce_belongs_to_its_device(wire: Wire, wire_server: Server, door: str) -> None:
    nonce = b64url_encode(os.urandom(16))
    assert with_value(wire_server, door, wire.laptop.header("GET", door, nonce=nonce)).status == 200
    assert with_value(wire_server, door, wire.phone.header("GET", door, nonce=nonce)).status == 200
    # The same nonce with another timestamp and another signature.
    again = wire.laptop.header("GET", door, nonce=nonce, ts=int(time.time()) - 3)
    answer = with_value(wire_server, door, again)
    assert (answer.status, answer.error) == (401, "unauthorized")


@pytest.mark.parametrize("door", DOORS)
def test_a_rejected_request_does_not_use_up_its_nonce(wire: Wire, wire_server: Server, door: str) -> None:
    nonce = b64url_encode(os.urandom(16))
    forged = wire.laptop.header("GET", f"{door}/other", nonce=nonce)
    stale = wire.laptop.header("GET", door, nonce=nonce, ts=int(time.time()) - 60)
    for header in (forged, stale):
        assert with_value(wire_server, door, header).status == 401
    assert with_value(wire_server, door, wire.laptop.header("GET", door, nonce=nonce)).status == 200


MALFORMED = {
    "time as text": {"ts": "yesterday"},
    "time as ISO 8601": {"ts": "2026-03-28T10:05:00Z"},
    "time with a fraction": {"ts": f"{time.time():.3f}"},
    "time with a sign": {"ts": f"+{int(time.time())}"},
    "negative time": {"ts": "-1"},
    "time in other digits": {"ts": "\u0661\u0662\u0663"},
    "time of 17 digits": {"ts": "0" * 17},
    "no time": {"ts": ""},
    "long nonce": {"nonce": "x" * 65},
    "nonce with a blank": {"nonce": "x y"},
    "nonce with a plus": {"nonce": "x+y"},
    "long id": {"id": "A" * 129},
    "id of other characters": {"id": "A!" * 22},
    "long signature": {"sig": "A" * 257},
    "a quote inside": {"sig": 'A"B'},
    "a backslash": {"sig": 'A\\"B'},
    "long version": {"v": "1" * 9},
    "one member more": {"sig": 'A",extra="x'},
    "a member twice": {"sig": 'A",v="1'},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_members(wire: Wire, wire_server: Server, case: str) -> None:
    for door in DOORS:
        answer = with_value(wire_server, door, wire.laptop.header("GET", door, shown=MALFORMED[case]))
        assert (answer.status, answer.error) == (400, "malformed_header")


UNAUTHORIZED = {
    "time of 1970": {"ts": "0"},
    "time of the far future": {"ts": "9" * 16},
    "id that is too short": {"id": "Agp2"},
    "id that is not a point": {"id": b64encode(b"\x02" + b"\xff" * 32)},
    "id that is not compressed": {"id": b64encode(b"\x04" + bytes(64))},
    "id with bits left over": {"id": "A" * 43 + "="},
    "signature of zeros": {"sig": b64url_encode(bytes(64))},
    "signature of the order": {"sig": b64url_encode(GROUP_ORDER.to_bytes(32, "big") * 2)},
    "signature of 63 bytes": {"sig": b64url_encode(bytes(63))},
    "signature of 65 bytes": {"sig": b64url_encode(bytes(65))},
    "signature that is not base64": {"sig": "A"},
    "short signature": {"sig": "AA"},
}


@pytest.mark.parametrize("case", UNAUTHORIZED)
def test_well_formed_headers_with_wrong_values(wire: Wire, wire_server: Server, case: str) -> None:
    for door in DOORS:
        answer = with_value(wire_server, door, wire.laptop.header("GET", door, shown=UNAUTHORIZED[case]))
        assert (answer.status, answer.error) == (401, "unauthorized")


@pytest.mark.parametrize("door", DOORS)
def test_two_headers_are_rejected(wire: Wire, wire_server: Server, door: str) -> None:
    def header() -> str:
        return wire.laptop.header("GET", door)

    once = header()
    for values in ((header(), header()), (once, once), (header(), "Bearer abc"), (header(), "")):
        answer = with_value(wire_server, door, *values)
        assert (answer.status, answer.error) == (400, "malformed_header")
    answer = with_value(wire_server, door, "Bearer abc", header())
    if door == "/drf":  # the value begins with another scheme, which no class accepts
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "AuthMesh")
    else:
        assert (answer.status, answer.error) == (400, "malformed_header")


@pytest.mark.parametrize("door", DOORS)
def test_the_scheme_is_case_sensitive(wire: Wire, wire_server: Server, door: str) -> None:
    for change in (str.lower, str.upper, lambda scheme: scheme + ",", lambda scheme: scheme + '="x"'):
        value = wire.laptop.header("GET", door).replace("AuthMesh", change("AuthMesh"), 1)
        answer = with_value(wire_server, door, value)
        assert (answer.status, answer.error) == (400, "malformed_header")


@pytest.mark.parametrize("name", ["Proxy-Authorization", "X-Authorization", "Authorization_", "HTTP_AUTHORIZATION"])
def test_other_headers_are_ignored(wire: Wire, wire_server: Server, name: str) -> None:
    answer = send(wire_server, "GET", "/decorator/sync", {name: wire.laptop.header("GET", "/decorator/sync")})
    assert (answer.status, answer.error) == (400, "missing_header")


@pytest.mark.parametrize("host", ["a b", "", "evil.example", "127.0.0.1:port", "[::1", "127.0.0.1, evil", "x" * 300])
def test_hosts_that_are_not_allowed(wire: Wire, wire_server: Server, host: str) -> None:
    for door in DOORS:
        headers = {"Authorization": wire.laptop.header("GET", door)}
        answer = exchange(wire_server.port, [head("GET", door, headers, host=host)])
        assert 400 <= answer.status < 500


def test_methods(wire: Wire, wire_server: Server) -> None:
    """A signature is valid for its method only."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert signed(wire_server, wire.laptop, method, "/decorator/sync").status == 200
        other = "POST" if method != "POST" else "PUT"
        answer = send(
            wire_server, other, "/decorator/sync", {"Authorization": wire.laptop.header(method, "/decorator/sync")}
        )
        assert (answer.status, answer.error) == (401, "unauthorized")


def test_the_log_contains_no_secrets(wire: Wire, wire_server: Server) -> None:
    """amesh logs neither body, query nor header values. The access log of the server has the query."""
    for door in DOORS:
        with said(wire_server) as log:
            target, body = f"{door}?token={MARK}", f"password={MARK}".encode()
            good = wire.laptop.header("POST", target, body)
            headers = {
                "Authorization": good,
                "Content-Type": "application/x-www-form-urlencoded",
                "Cookie": f"a={MARK}",
            }
            assert send(wire_server, "POST", target, headers, body).status == 200
            assert send(wire_server, "POST", target, headers, body).status == 401
            assert (
                send(wire_server, "POST", target, {**headers, "Authorization": f'AuthMesh v="{MARK}"'}, body).status
                == 400
            )
            assert send(wire_server, "POST", target, {**headers, "X-Meddle": "read"}, body).status == 500
        ours = [line for line in log if " amesh_django." in line]
        assert len([line for line in ours if " amesh_django.audit" not in line]) == 3
        members = dict(pair.split("=", 1) for pair in good.removeprefix("AuthMesh ").split(","))
        secrets = [MARK, *(members[name].strip('"') for name in ("nonce", "sig", "id"))]
        assert not [secret for secret in secrets for line in ours if secret in line]
        everything = "\n".join(log)
        assert not [secret for secret in secrets[1:] if secret in everything]
        assert f"password={MARK}" not in everything


def test_the_log_has_one_line_per_rejection(wire: Wire, wire_server: Server) -> None:
    with said(wire_server) as log:
        assert (
            signed(wire_server, wire.stranger, "GET", "/drf/%0AINFO%20amesh_django%20let%20in%0D%1B[31m").status == 401
        )
    ours = [line for line in log if " amesh_django." in line]
    assert len(ours) == 1 and ours[0].startswith("WARNING amesh_django.verification unauthorized: unknown_device")
    assert "\x1b" not in ours[0]
