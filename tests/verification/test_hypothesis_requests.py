"""Forty thousand mutated headers and targets: none is accepted that a view would read in another way, and none is a 500.

This module decides from protocol.md and with Django's own parser which mutations change nothing, never with the code under test.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse, QueryDict
from django.test import override_settings
from django.urls import re_path
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from amesh_django.states import State
from amesh_django.verification import Verifier
from amesh_django.verification import request as http
from authmesh.protocol import RequestError
from tests.verification import mutations
from tests.verification.wire import Caller

pytestmark = [pytest.mark.slow, pytest.mark.unversioned]

NOW = 1_800_000_000
#: Number of mutations that must be rejected, of headers and of targets; and number of mutations of one request.
WANTED, BATCH = 20_000, 200
#: Number of mutations of each that go through all of Django.
WHOLE = 1_600

LAPTOP, PHONE = (Caller(name, hashlib.sha256(name.encode()).digest()) for name in ("laptop", "phone"))
OTHER = PHONE.header("PUT", "/other", b"other", ts=NOW, nonce="o" * 22)


@dataclass(frozen=True)
class Trusted:
    """A device in the allow list, as the verifier needs it."""

    device_id: str
    friendly_name: str
    role: str = "controller"
    permissions: Mapping[str, Any] = field(default_factory=dict)
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    rotation_requested: bool = False
    user_id: None = None
    pk: None = None

    def state(self, now: float) -> State:
        return "active"


class Forgetful:
    """Accepts every nonce, so that a replay error never hides a wrong acceptance."""

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        return True


TRUSTED = {signer.public_key: Trusted(signer.device_id, signer.name) for signer in (LAPTOP, PHONE)}
VERIFIER = Verifier(lookup=TRUSTED.get, nonces=Forgetful(), clock=lambda: NOW)


@dataclass(frozen=True)
class Signed:
    """A valid request."""

    method: str
    target: str
    body: bytes
    header: str


# --- valid requests --------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
_SEGMENT = st.one_of(
    st.text("abcXYZ019-_~!$&'()*+,;=:@", min_size=1, max_size=8), _TEXT.map(lambda text: quote(text, safe=""))
).filter(lambda segment: unquote_to_bytes(segment) not in (b".", b"..") and b"/" not in unquote_to_bytes(segment))
_WORD = st.one_of(
    st.text("abAB01*-._~!/:", max_size=4), _TEXT.map(lambda text: quote(text, safe="").replace("%20", "+"))
)
_PAIR = st.builds(lambda name, value: f"{name}={value}", _WORD, _WORD)


@st.composite
def requests(draw: st.DrawFn) -> Signed:
    segments = draw(st.lists(_SEGMENT.filter(bool), min_size=1, max_size=4))
    target = "/" + "/".join(segments)
    if pairs := draw(st.lists(_PAIR, max_size=4)):
        target += "?" + "&".join(pairs)
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE"]))
    body = draw(st.binary(max_size=20))
    ts = NOW + draw(st.integers(-30, 30))
    return Signed(method, target, body, LAPTOP.header(method, target, body, ts=ts))


# --- mutations that change nothing -------------------------------------------------------------------------------------------

_PAIR_TEXT = r'(v|id|ts|nonce|sig)="([^"]+)"'
#: protocol.md §2, and the README beside the vectors: `AuthMesh` 1*SP pair *( *SP "," *SP pair ).
_GRAMMAR = re.compile(f"AuthMesh +{_PAIR_TEXT}(?: *, *{_PAIR_TEXT}){{4}}")


def header_means(header: str) -> dict[str, str] | None:
    """Return the members of a header, with keys and signatures in one encoding, or None if it is malformed."""
    if len(header) > 1024 or not _GRAMMAR.fullmatch(header):
        return None
    pairs = re.findall(_PAIR_TEXT, header)
    found = {
        name: value.translate(str.maketrans("-_", "+/")).rstrip("=") if name in ("id", "sig") else value
        for name, value in pairs
    }
    return found if len(found) == len(pairs) == 5 else None


#: One reading, given that the path is that of a good request, and that the query does not begin with a question mark.
_plain = re.compile(r"/[!\"$-\[\]-~]*").fullmatch


def target_means(target: str) -> tuple[str, dict[str, list[Any]]]:
    """Return what a view reads: the exact path, and the query as Django parses it."""
    path, _, query = target.partition("?")
    return path, dict(QueryDict(query.encode("utf-8", "surrogatepass"), encoding="utf-8").lists())


# --- the verdict ----------------------------------------------------------------------------------------------------


def verdict(request: Signed, *, target: str | None = None, header: str | None = None) -> str:
    """Return `accepted`, or the code of the rejection. Any other exception would be a 500."""
    target, header = request.target if target is None else target, request.header if header is None else header
    try:
        VERIFIER.verify(request.method, target, header, lambda: hashlib.sha256(request.body).hexdigest())
    except RequestError as error:
        assert 400 <= error.status < 500, (target, header, error)
        return error.code
    return "accepted"


class Batch:
    """Mutations of one request, with a short repr for failing tests."""

    def __init__(self, mutations: list[mutations.Mutation]) -> None:
        self.mutations = mutations


def hammered(
    strategy: st.SearchStrategy[mutations.Mutation], judge: Callable[[Signed, str | None], str], wanted: int
) -> Counter[str]:
    """Judge mutations until at least `wanted` of them were rejected. Return how often each verdict occurred.

    `judge` takes a request and a mutation of it, and returns the verdict, or "" for a mutation that changes nothing.
    """
    tried: Counter[str] = Counter()

    # Two fifths more, because some mutations change nothing. No shrinking: the assertion names the mutated value.
    @settings(
        max_examples=wanted * 7 // 5 // BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(requests(), st.lists(strategy, min_size=BATCH, max_size=BATCH).map(Batch))
    def run(request: Signed, batch: Batch) -> None:
        assert judge(request, None) == "accepted"
        for mutation in batch.mutations:
            tried[judge(request, mutation)] += 1

    run()
    assert tried.total() - tried[""] >= wanted, tried
    return tried


def judge_header(request: Signed, mutation: mutations.Mutation | None) -> str:
    if mutation is None:
        return verdict(request)
    header = mutation(request.header)
    found = verdict(request, header=header)
    if header_means(header) == header_means(request.header):
        assert found == "accepted", header
        return ""
    assert found != "accepted", header
    return found


def judge_target(request: Signed, mutation: mutations.Mutation | None) -> str:
    if mutation is None:
        return verdict(request)
    target = mutation(request.target)
    found = verdict(request, target=target)
    if target_means(target) == target_means(request.target):
        assert found == "accepted" or not _plain(target) or "??" in target, target
        return ""
    assert found != "accepted", (request.target, target)
    return found


def test_mutated_headers_are_rejected() -> None:
    tried = hammered(mutations.header(OTHER), judge_header, WANTED)
    assert {"malformed_header", "unauthorized", "unsupported_version", "missing_header"} <= {*tried}


def test_mutated_targets_are_rejected() -> None:
    tried = hammered(mutations.target(), judge_target, WANTED)
    assert {*tried} <= {"unauthorized", ""}


# --- the same through Django ----------------------------------------------------------------------------------------


def answer(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"query": dict(request.GET.lists()), "body": request.body.hex()})


urlpatterns = [re_path(r"(?s:.*)", answer)]


def environ(request: Signed, target: str, header: str) -> dict[str, Any]:
    """Return the environment that gunicorn passes to Django. Non-ASCII text is the bytes of the wire."""
    raw = target.encode().decode("latin-1")
    path, _, query = raw.partition("?")
    return {
        "REQUEST_METHOD": request.method,
        "RAW_URI": raw,
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": query,
        "HTTP_HOST": "127.0.0.1",
        "HTTP_AUTHORIZATION": header.encode().decode("latin-1"),
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.input": BytesIO(request.body),
        "wsgi.url_scheme": "http",
    }


@pytest.fixture
def whole(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Signed, str, str], str]]:
    """A function that returns the verdict of all of Django on a request."""
    monkeypatch.setattr(http, "default_verifier", lambda: VERIFIER)
    with override_settings(
        ROOT_URLCONF=__name__, MIDDLEWARE=["amesh_django.middleware.AmeshMiddleware"], ALLOWED_HOSTS=["127.0.0.1"]
    ):
        handler = WSGIHandler()

        def judged(request: Signed, target: str, header: str) -> str:
            response = handler(environ(request, target, header), lambda status, headers: None)
            assert response.status_code == 200 or 400 <= response.status_code < 500, (target, header)
            found = json.loads(response.content) if response.headers["Content-Type"] == "application/json" else {}
            if response.status_code != 200:
                return str(found.get("error", response.status_code))
            assert found == {"query": target_means(request.target)[1], "body": request.body.hex()}
            return "accepted"

        yield judged


def test_mutated_headers_through_django(whole: Callable[[Signed, str, str], str]) -> None:
    def judge(request: Signed, mutation: mutations.Mutation | None) -> str:
        if mutation is None:
            return whole(request, request.target, request.header)
        header = mutation(request.header)
        found = whole(request, request.target, header)
        same = header_means(header) == header_means(request.header)
        assert (found == "accepted") == same, header
        return "" if same else found

    hammered(mutations.header(OTHER), judge, WHOLE)


def test_mutated_targets_through_django(whole: Callable[[Signed, str, str], str]) -> None:
    def judge(request: Signed, mutation: mutations.Mutation | None) -> str:
        if mutation is None:
            return whole(request, request.target, request.header)
        target = mutation(request.target)
        found = whole(request, target, request.header)
        same = target_means(target) == target_means(request.target)
        assert same or found != "accepted", target
        return "" if same else found

    hammered(mutations.target(), judge, WHOLE)
