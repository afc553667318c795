"""Every error of protocol.md §3, over HTTP, at every door, against every server."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.services import SERVERS, Server, free_port
from tests.verification.wire import DOORS, LIMIT, ONE_OF_EACH_KIND, Answer, Wire, World, said, send, signed

pytestmark = pytest.mark.process

#: Provokes an error at a door.
Provocation = Callable[[Wire, Server, str], Answer]


def refused(answer: Answer, status: int, error: str) -> None:
    """Assert that an answer is exactly the one in the table."""
    assert (answer.status, answer.error) == (status, error)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers.get("WWW-Authenticate") == ("AuthMesh" if status == 401 else None)


def replayed(wire: Wire, server: Server, door: str) -> Answer:
    headers = {"Authorization": wire.laptop.header("GET", door)}
    assert send(server, "GET", door, headers).status == 200
    return send(server, "GET", door, headers)


def with_header(wire: Wire, server: Server, door: str, **how: object) -> Answer:
    header = wire.laptop.header("POST", door, b"{}", **how)  # type: ignore[arg-type]
    return send(server, "POST", door, {"Authorization": header, "Content-Type": "application/json"}, b"{}")


CASES: dict[str, tuple[int, str, Provocation]] = {
    "another scheme": (
        400,
        "malformed_header",
        lambda w, s, d: send(s, "GET", d, {"Authorization": "AuthMesh nonsense"}),
    ),
    "version 2": (400, "unsupported_version", lambda w, s, d: with_header(w, s, d, shown={"v": "2"})),
    "unknown device": (401, "unauthorized", lambda w, s, d: signed(s, w.stranger, "GET", d)),
    "wrong role": (401, "unauthorized", lambda w, s, d: signed(s, w.target, "GET", d)),
    "revoked": (401, "unauthorized", lambda w, s, d: signed(s, w.lost, "GET", d)),
    "bad signature": (401, "unauthorized", lambda w, s, d: with_header(w, s, d, shown={"nonce": "x" * 22})),
    "replay": (401, "unauthorized", replayed),
    "clock behind": (401, "timestamp_out_of_range", lambda w, s, d: with_header(w, s, d, ts=int(time.time()) - 40)),
    "clock ahead": (401, "timestamp_out_of_range", lambda w, s, d: with_header(w, s, d, ts=int(time.time()) + 40)),
    "old and forged": (
        401,
        "unauthorized",
        lambda w, s, d: with_header(w, s, d, ts=int(time.time()) - 40, shown={"nonce": "x" * 22}),
    ),
    "too large": (413, "payload_too_large", lambda w, s, d: signed(s, w.laptop, "POST", d, body=bytes(LIMIT + 1))),
    "body consumed": (
        500,
        "body_parser_ordering_error",
        lambda w, s, d: signed(s, w.laptop, "POST", d, {"X-Meddle": "read", "Content-Type": "text/plain"}, b"abc"),
    ),
}
REASONS = {
    "unknown device": "unknown_device",
    "wrong role": "role_rejected",
    "revoked": "device_revoked",
    "bad signature": "invalid_signature",
    "replay": "replay_detected",
    "clock behind": "timestamp_out_of_range",
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", CASES)
def test_the_table(wire: Wire, wire_server: Server, case: str, door: str) -> None:
    status, error, provoke = CASES[case]
    with said(wire_server) as log:
        refused(provoke(wire, wire_server, door), status, error)
    lines = [line for line in log if " amesh_django.verification " in line]
    assert len(lines) == 1, log
    assert REASONS.get(case, error) in lines[0]


@pytest.mark.parametrize("door", [door for door in DOORS if door != "/drf"])
def test_no_header_at_all(wire_server: Server, door: str) -> None:
    refused(send(wire_server, "GET", door), 400, "missing_header")
    refused(send(wire_server, "GET", door, {"Authorization": ""}), 400, "missing_header")
    refused(send(wire_server, "GET", door, {"Authorization": "Bearer abc"}), 400, "malformed_header")


def test_rest_framework_leaves_requests_without_our_header_to_the_next_class(wire: Wire, wire_server: Server) -> None:
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer abc"}):
        answer = send(wire_server, "GET", "/drf", headers)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "AuthMesh")
        assert "detail" in answer.json
    assert send(wire_server, "GET", "/drf", {"Authorization": wire.basic}).json["user"] == "anna"


@pytest.mark.parametrize("door", DOORS)
def test_signed_requests_are_accepted(wire: Wire, wire_server: Server, door: str) -> None:
    for method, body in (("GET", b""), ("POST", b"hello"), ("PUT", b"hello")):
        answer = signed(wire_server, wire.phone, method, door, {"Content-Type": "text/plain"}, body)
        assert answer.status == 200, answer.body
        expected = {"id": wire.phone.device_id, "name": "Käthes 📱", "role": "controller"}
        assert (answer.json["device"], answer.json["method"]) == (expected, method)


@pytest.mark.parametrize("door", ["/decorator/async-class", "/decorator/sync-class"])
def test_class_based_views_under_method_decorator(wire: Wire, wire_server: Server, door: str) -> None:
    answer = signed(wire_server, wire.phone, "POST", door, {"Content-Type": "text/plain"}, b"hello")
    assert (answer.status, answer.json["device"]["id"]) == (200, wire.phone.device_id)
    assert "Authorization" in answer.headers["Vary"]
    refused(signed(wire_server, wire.stranger, "POST", door, body=b"hello"), 401, "unauthorized")
    refused(send(wire_server, "GET", door), 400, "missing_header")


def test_a_device_of_a_user_who_is_not_active_is_rejected(world: World) -> None:
    from django.contrib.auth import get_user_model

    with world.allow_list() as devices:
        user = get_user_model()._default_manager.get(username="anna")
        devices.map_user(world.phone.device_id, user)
        with world.serve("uvicorn") as server:
            for active in (True, False):
                get_user_model()._default_manager.filter(pk=user.pk).update(is_active=active)
                for door in DOORS:
                    with said(server) as log:
                        answer = signed(server, world.phone, "GET", door)
                    if active:
                        assert answer.status == 200, door
                    else:
                        refused(answer, 401, "unauthorized")
                        lines = [line for line in log if " amesh_django.verification " in line]
                        assert len(lines) == 1 and "user_inactive" in lines[0] and world.phone.device_id in lines[0]
                    assert signed(server, world.laptop, "GET", door).status == 200


def test_paths_that_the_middleware_does_not_protect(wire: Wire, wire_server: Server) -> None:
    for path in ("/open", "/middleware/open", "/middleware/open/below"):
        assert send(wire_server, "GET", path).json["device"] is None
    for path in ("/middleware/opened", "/middleware/"):
        assert send(wire_server, "GET", path).error == "missing_header"


@pytest.mark.parametrize("skew", [-25, 25])
def test_a_small_clock_skew_is_accepted_and_logged(wire: Wire, wire_server: Server, skew: int) -> None:
    with said(wire_server) as log:
        assert with_header(wire, wire_server, "/decorator/sync", ts=int(time.time()) + skew).status == 200
    assert any("clock_drift_warning" in line and wire.laptop.device_id in line for line in log)


@pytest.mark.parametrize("kind", SERVERS)
def test_a_broken_list_rejects_all_requests(world: World, kind: str) -> None:
    world.sql("UPDATE amesh_device SET role = 'controller' WHERE device_id = %s", world.target.device_id)
    with world.serve(kind) as server:
        for door in DOORS:
            for signer in (world.laptop, world.target, world.stranger):
                refused(signed(server, signer, "GET", door), 500, "allow_list_integrity_failure")
        assert any(line.startswith("CRITICAL") and "amesh_integrity" in line for line in server.output().splitlines())


@pytest.mark.parametrize("ignore", ["0", "1"], ids=["raising", "ignoring"])
@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_without_a_nonce_store_all_requests_are_rejected(world: World, kind: str, ignore: str) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    with world.serve(kind, TEST_REDIS_URL=nobody, TEST_REDIS_IGNORE_EXCEPTIONS=ignore) as server:
        for door in DOORS:
            refused(signed(server, world.laptop, "GET", door), 503, "nonce_store_unavailable")
        # Other rejections are not affected: the store is asked last.
        refused(signed(server, world.stranger, "GET", "/drf"), 401, "unauthorized")
