"""Whole requests with the verdicts of the reference (vectors/verify.json), through the verifier and through Django."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import re_path

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.states import State
from amesh_django.verification import Verifier
from amesh_django.verification import request as http
from amesh_django.verification.lookup import database_lookup
from amesh_django.verification.types import Lookup
from authmesh.nonces import InMemoryNonceStore
from authmesh.protocol import CONTROLLER, DeviceEntry, InvalidInput, RequestError, TimestampOutOfRange, open_document
from tests.support.directories import VECTORS

DOCUMENT: dict[str, Any] = json.loads((VECTORS / "verify.json").read_text("utf-8"))
CASES = {case["tag"]: case for case in DOCUMENT["cases"]}

Verdict = tuple[int, str | None]
UNAUTHORIZED, CLOCK, GOOD = (401, "unauthorized"), (401, "timestamp_out_of_range"), (200, None)
MALFORMED = (400, "malformed_header")

#: Our verdicts where they differ from the reference on purpose. The README of the vectors has the reasons.
OURS: dict[str, list[Verdict]] = {
    **{
        f"ts_{what}": [MALFORMED]
        for what in ("suffix_junk", "leading_space", "float", "plus", "hex", "nan", "negative")
    },
    **{f"skew_{seconds}": [CLOCK] for seconds in (31, -31, 3600)},
    "id_base64url_not_matched_by_string": [GOOD],
    "nonce_shared_across_devices": [GOOD, GOOD],
    "nonce_burned_by_bad_signature": [UNAUTHORIZED, GOOD],
    # The signature is valid, so the answer says that the clock of the device is wrong.
    "nonce_not_burned_by_stale_ts": [CLOCK, GOOD],
    "replay_until_expiry": [GOOD, UNAUTHORIZED, UNAUTHORIZED, CLOCK],
    # Django rejects the host before the request is verified.
    "host_garbage_next_err": [(400, None)],
    # Targets are not normalized: in all other `url_` cases, the reference signed another spelling, or the target is ambiguous.
    **{
        tag: [UNAUTHORIZED]
        for tag in CASES
        if tag.startswith("url_")
        and tag
        not in ("url_pct_kept", "url_quote_in_query", "url_empty_query", "url_semicolon_params", "url_bad_pct_kept")
    },
}
#: The window is too short for the clock skew: a system-check error, and the verifier raises.
IMPOSSIBLE = "window_shorter_than_skew_replayable"
#: The body limit of the reference, unless the case has another one.
LIMIT = 1 << 20
#: Cases about body limits and hosts, which the verifier does not check.
ONLY_DJANGO = {"body_too_large", "content_length_too_large", "host_garbage_next_err"}


def expected(tag: str) -> list[Verdict]:
    theirs = [request["expected"] for request in CASES[tag]["requests"]]
    return OURS.get(tag) or [(one["status"], one.get("body", {}).get("error")) for one in theirs]


def entries() -> list[DeviceEntry]:
    found, _ = open_document(
        DOCUMENT["allow_list_file"],
        key_material=bytes.fromhex(DOCUMENT["hmac_key_material_hex"]),
        device_id=DOCUMENT["device_id"],
    )
    return found


@dataclass(frozen=True)
class Trusted:
    """An entry of the sealed file, as the verifier needs it."""

    device_id: str
    friendly_name: str
    role: str
    permissions: Mapping[str, Any]
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    rotation_requested: bool = False
    user_id: None = None
    pk: None = None

    def state(self, now: float) -> State:
        return "active"


def file_lookup() -> Lookup:
    return {
        entry.public_key: Trusted(entry.device_id, entry.friendly_name, entry.role, entry.permissions)
        for entry in entries()
    }.get


class Clock:
    """A clock that each case sets, in Unix seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def verifier(clock: Clock, lookup: Lookup) -> Verifier:
    return Verifier(lookup=lookup, nonces=InMemoryNonceStore(clock=clock), clock=clock)


def hash_of(body: bytes) -> Callable[[], str]:
    return lambda: hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("tag", [tag for tag in CASES if tag != IMPOSSIBLE and tag not in ONLY_DJANGO])
def test_verifier(tag: str) -> None:
    clock = Clock()
    ours = verifier(clock, file_lookup())
    for request, verdict in zip(CASES[tag]["requests"], expected(tag), strict=True):
        clock.now = request["now"]
        body = base64.b64decode(request["body_b64"])
        try:
            device = ours.verify(request["method"], request["url"], request["authorization"], hash_of(body))
        except RequestError as error:
            assert (error.status, error.code) == verdict
        else:
            assert verdict == GOOD
            if "auth_mesh" in request["expected"]:
                found = {
                    "deviceId": device.device_id,
                    "friendlyName": device.friendly_name,
                    "verifiedAt": device.verified_at,
                }
                assert found == request["expected"]["auth_mesh"]


def test_a_body_that_arrives_slowly_does_not_outlive_the_memory_of_its_nonce() -> None:
    """The timestamp is looked at again after the body was read: the same request, held open, would be a replay."""
    tag = next(tag for tag in CASES if tag not in ONLY_DJANGO and expected(tag) == [GOOD])
    (request,) = CASES[tag]["requests"]
    clock = Clock()
    ours = verifier(clock, file_lookup())
    clock.now = request["now"]

    def slow_hash() -> str:
        clock.now += 120
        return hash_of(base64.b64decode(request["body_b64"]))()

    with pytest.raises(TimestampOutOfRange):
        ours.verify(request["method"], request["url"], request["authorization"], slow_hash)


def test_a_window_shorter_than_the_skew_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="twice the clock skew"):
        Verifier(
            lookup=file_lookup(),
            nonces=InMemoryNonceStore(),
            nonce_window=CASES[IMPOSSIBLE]["opts"]["nonceWindowSeconds"],
        )


# --- the same through Django: settings, middleware, the list in the database -----------------------------------------


def answer(request: HttpRequest) -> JsonResponse:
    device = request.amesh  # type: ignore[attr-defined]
    return JsonResponse(
        {
            "deviceId": device.device_id,
            "friendlyName": device.friendly_name,
            "verifiedAt": device.verified_at,
            "body": base64.b64encode(request.body).decode(),
        }
    )


urlpatterns = [re_path(r"(?s:.*)", answer)]


def environ(request: dict[str, Any]) -> dict[str, Any]:
    """Return the environment that gunicorn passes to Django. The target is the bytes of the request line."""
    raw = request["url"].encode().decode("latin-1")
    path, _, query = raw.partition("?")
    body = base64.b64decode(request["body_b64"])
    found = {
        "REQUEST_METHOD": request["method"],
        "RAW_URI": raw,
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": request.get("host", "127.0.0.1"),
        "CONTENT_LENGTH": request.get("headers", {}).get("content-length", str(len(body))),
        "CONTENT_TYPE": "application/octet-stream",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": BytesIO(),
        "wsgi.url_scheme": "http",
    }
    if request["authorization"] is not None:
        found["HTTP_AUTHORIZATION"] = request["authorization"]
    return found


@pytest.fixture
def django_app(db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sends a request of a case to the app, at the time of the case."""
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["amesh_django.middleware.AmeshMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]
    settings.ALLOWED_HOSTS = ["*"]
    seal_key = tmp_path / "seal.key"
    seal_key.touch(0o600)
    seal_key.write_text("5a" * 32)
    settings.AMESH = {"SEAL_KEY_FILE": seal_key, "MAX_CONTROLLERS": 2, "MAX_BODY_BYTES": LIMIT}
    DatabaseAllowList().add_all(entries())
    clock = Clock()
    ours = verifier(clock, database_lookup)
    monkeypatch.setattr(http, "default_verifier", lambda: ours)
    handler = WSGIHandler()

    def call(request: dict[str, Any]) -> tuple[int, Any]:
        clock.now = request["now"]
        statuses: list[str] = []
        response = handler(environ(request), lambda status, headers: statuses.append(status))
        content = b"".join(response)
        response.close()
        is_json = response.headers["Content-Type"] == "application/json"
        return int(statuses[0][:3]), json.loads(content) if is_json else None

    return call


@pytest.mark.parametrize("tag", [tag for tag in CASES if tag != IMPOSSIBLE])
def test_django(django_app: Callable[[dict[str, Any]], tuple[int, Any]], settings: Any, tag: str) -> None:
    limit = CASES[tag].get("opts", {}).get("maxBodyBytes", LIMIT)
    if limit != LIMIT:
        settings.AMESH = {**settings.AMESH, "MAX_BODY_BYTES": limit}
    for request, verdict in zip(CASES[tag]["requests"], expected(tag), strict=True):
        status, found = django_app(request)
        if status == 200:
            assert verdict == GOOD
            assert found.pop("body") == request["body_b64"]
            assert found == request["expected"].get("auth_mesh", found)
        else:
            assert (status, found["error"] if found else None) == verdict


def test_the_list_of_the_vectors_has_two_controllers() -> None:
    assert [entry.role for entry in entries()].count(CONTROLLER) == 2
