"""A server asks its hub: what the hub answers and to whom, and which answers the server takes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import reverse

from amesh_django import urls
from amesh_django.fleet import servers, signed_list
from amesh_django.models import Server
from amesh_django.test import AmeshClient, EphemeralDevice
from authmesh.client.signing import NONCE_BYTES, sign_request
from authmesh.device import LocalDevice
from authmesh.protocol.encoding import b64decode_any, b64url_encode
from authmesh.protocol.fleet.feed import FeedMessage, pull_message
from authmesh.protocol.fleet.pull import PullQuestion
from authmesh.protocol.header import parse_authorization
from authmesh.protocol.keys import verify_signature
from tests.fleet.servers import add_server, hub, laptops
from tests.support.services import ROOT

PATH = "/amesh/feed/pull"
LIST = "/amesh/revocations.jwt"

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def own(amesh_server: LocalDevice, db: None) -> str:
    """The device ID of this hub."""
    return amesh_server.identity.device_id


def ask(device: EphemeralDevice, audience: str, **members: Any) -> Any:
    value = {**PullQuestion(audience).to_json(), **members}
    return AmeshClient(device, enforce_csrf_checks=True).post(PATH, value, content_type="application/json")


def test_the_hub_signs_what_the_server_lacks(own: str, amesh_server: LocalDevice) -> None:
    assert reverse("amesh_django:pull") == PATH
    (lost,) = laptops(1)
    _row, server = add_server()
    first = FeedMessage.from_json(ask(server, own).json())
    hub().revoke(lost.identity.device_id, reason="lost")

    response = ask(server, own, epoch=first.epoch, after=first.head)

    assert response.status_code == 200
    found = FeedMessage.from_json(response.json())
    assert [(event.event, event.device_id, event.reason) for event in found.events] == [
        ("revoke", lost.identity.device_id, "lost")
    ]
    assert (found.issuer, found.audience) == (own, server.identity.device_id)
    signed = pull_message(
        issuer=own,
        audience=server.identity.device_id,
        nonce=parse_authorization(response.wsgi_request.META["HTTP_AUTHORIZATION"]).nonce,
        body_hash=hashlib.sha256(response.content).hexdigest(),
    )
    signature = b64decode_any(response.headers["Amesh-Signature"])
    assert verify_signature(amesh_server.identity.public_key, signed, signature)
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"aud": "am_other"}, 403, "wrong_audience"),
        ({"v": 2}, 400, "malformed_feed"),
        ({"after": -1}, 400, "malformed_feed"),
        ({"epoch": "e" * 33}, 400, "malformed_feed"),
    ],
)
def test_a_question_that_is_none(own: str, members: dict[str, Any], status: int, code: str) -> None:
    _row, server = add_server()
    response = ask(server, own, **members)
    assert (response.status_code, response.json()) == (status, {"error": code})


def test_only_servers_of_the_hub_are_answered(own: str, amesh_trust: Trust, caplog: Any) -> None:
    row, server = add_server()
    target, controller = amesh_trust(EphemeralDevice("target"), "target"), amesh_trust(EphemeralDevice("laptop"))

    def answer(device: EphemeralDevice) -> tuple[int, Any]:
        response = ask(device, own)
        return response.status_code, response.json().get("error")

    assert answer(target) == (403, "not_following")
    assert answer(controller) == (401, "unauthorized") and "role_rejected" in caplog.text
    assert answer(EphemeralDevice("stranger")) == (401, "unauthorized")
    assert Client().post(PATH, {}, content_type="application/json").status_code == 400
    assert AmeshClient(server).get(PATH).status_code == 405
    Server.objects.filter(pk=row.pk).update(scope_of_events="enroll")  # outside amesh, so without a MAC
    assert answer(server) == (403, "not_following")
    Server.objects.filter(pk=row.pk).update(scope_of_events="revoke")
    assert answer(server)[0] == 200
    hub().revoke(server.identity.device_id, reason="stolen")
    assert answer(server) == (401, "unauthorized") and "device_revoked" in caplog.text


def test_a_server_that_asks_for_what_was_lost_is_remembered(own: str) -> None:
    """An older list was restored at the hub, which may grow past the number before it sends anything."""
    row, server = add_server()
    newest = servers.head()
    assert ask(server, own, epoch=newest.epoch, after=newest.revision).status_code == 200
    row.refresh_from_db()
    assert not servers.is_ahead(row, servers.head())
    assert ask(server, own, epoch=newest.epoch, after=newest.revision + 1).status_code == 200
    laptops(1)
    laptops(1)
    row.refresh_from_db()
    assert servers.is_ahead(row, servers.head())


class Seen:
    """A middleware that notes whom the project sees behind a request."""

    found: list[tuple[Any, Any]] = []  # noqa: RUF012 -- shared by all instances

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        self.found.append((getattr(request, "amesh", None), request.user.is_authenticated))
        return response


def test_a_server_that_asks_is_nobody_to_the_project(own: str, settings: Any) -> None:
    """The role is accepted at this address only: also with the middleware, which protects the others."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware", f"{__name__}.Seen"]
    Seen.found.clear()
    _row, server = add_server()
    assert ask(server, own).status_code == 200
    assert Seen.found == [(None, False)]
    paths = {f"/{pattern.pattern}" for pattern in urls.urlpatterns} - {PATH, LIST, "/amesh/enroll"}
    assert "/amesh/feed" in paths
    for path in sorted({*paths, "/echo", "/admin/"}):
        assert AmeshClient(server).post(path, {}, content_type="application/json").status_code == 401, path


def test_no_other_code_accepts_targets() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "amesh_django").rglob("*.py")
        if re.search(r"\bauthenticate_target\b|\broles\s*=", path.read_text("utf-8"))
    }
    assert users == {"amesh_django/verification/request.py", "amesh_django/views/fleet.py"}


# --- the signed list ---


def test_anyone_may_fetch_the_list_of_a_hub(own: str, amesh_server: LocalDevice, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware"]
    (lost,) = laptops(1)
    hub().revoke(lost.identity.device_id, reason="lost")
    assert Client().get(LIST).status_code == 404  # no hub
    add_server()
    response = Client().get(LIST)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/amesh-revocations+jwt")
    found = signed_list.verify(
        response.content.decode(),
        issuer=own,
        issuer_key=amesh_server.identity.public_key,
        now=time.time(),
    )
    assert len(found.revoked) == 1
    assert set(response.headers["Cache-Control"].split(", ")) == {"public", "no-cache"}
    tag = response.headers["ETag"]
    again = Client().get(LIST, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert Client().get(LIST, headers={"If-None-Match": '"other"'}).status_code == 200
    assert Client().head(LIST).content == b"" and Client().post(LIST).status_code == 405


@pytest.mark.parametrize("seconds", [-400, 400])
def test_an_old_or_future_question_is_refused_by_its_signature(own: str, seconds: int) -> None:
    """The question has no time of its own: that of the signed request counts, and its nonce is good once."""
    _row, server = add_server()
    body = json.dumps(PullQuestion(own).to_json()).encode()

    def post(now: float) -> Callable[[], Any]:
        header = sign_request(
            server,
            method="POST",
            target=PATH,
            body_hash=hashlib.sha256(body).hexdigest(),
            now=now,
            nonce=b64url_encode(os.urandom(NONCE_BYTES)),
        )
        return lambda: Client().post(PATH, body, content_type="application/json", headers={"Authorization": header})

    assert post(time.time() + seconds)().status_code == 401
    good = post(time.time())
    assert [good().status_code, good().status_code] == [200, 401]
