"""A server asks its hubs before it accepts a device: when, once for all, and what it does if they are silent."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.checks import check_hubs
from amesh_django.fleet import freshness, posting, rarely, signed_list, silence
from amesh_django.fleet.following import follows
from amesh_django.management import doctor
from amesh_django.models import Hub
from amesh_django.test import AmeshAPIClient, AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.fleet.pull import PullQuestion, sign_answer
from authmesh.protocol.header import parse_authorization
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


class Line:
    """The network between a server and its hub.

    Attributes:
        events: what the hub says when it is asked.
        asked: the questions so far.
        is_down: True if nothing arrives.
        rewrite: changes an answer on its way: body and signature.
    """

    def __init__(self, hub: TestHub) -> None:
        self.hub, self.events, self.asked, self.is_down = hub, list[Any](), list[PullQuestion](), False
        self.rewrite: Callable[[bytes, str], tuple[bytes, str]] = lambda body, signature: (body, signature)
        self.signer, self.nonce = hub.device, ""
        self.answered: tuple[bytes, str] | None = None

    def post(self, url: str, body: bytes, *, headers: dict[str, str], **options: Any) -> posting.Answer:
        assert url == f"{self.hub.url}feed/pull"
        self.asked.append(PullQuestion.from_json(json.loads(body)))
        if self.is_down:
            raise posting.NoAnswer("Nobody answers.")
        message = json.dumps(self.hub.message(*self.events).to_json()).encode()
        nonce = self.nonce or parse_authorization(headers["Authorization"]).nonce
        signature = sign_answer(
            message, issuer=self.hub.id, audience=self.hub.server, nonce=nonce, sign=self.signer.sign
        )
        message, signature = self.rewrite(message, signature)
        return posting.Answer(200, {"amesh-signature": signature}, message)


class Clock:
    """The clock of the server, which is set by hand.

    Attributes:
        ahead: seconds ahead of ours.
        slept: those of them in which the machine slept, and one of its clocks stood still.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = self.slept = 0.0
        freshly = freshness._freshness
        real, steady = freshly._clock, freshly._monotonic
        monkeypatch.setattr(freshly, "_clock", lambda: real() + self.ahead)
        monkeypatch.setattr(freshly, "_monotonic", lambda: steady() + self.ahead - self.slept)


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that the server has heard, before its processes began anew."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.url = "https://hub.example/amesh/"
    found.greet()
    return found


@pytest.fixture
def line(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> Line:
    found = Line(hub)
    monkeypatch.setattr(posting, "post", found.post)
    rarely.reset()
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def doctor_on_hubs() -> list[tuple[str, str]]:
    """Return what ``amesh_doctor`` says about hubs: status and message."""
    return [(found.status, found.message) for found in doctor.hubs()]


def begin_anew(clock: Clock) -> None:
    """Let the processes of the server begin anew, a second after the newest message of the hub."""
    clock.ahead += 1
    lifecycle.reset()


def test_the_first_request_of_a_process_asks(hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust) -> None:
    lost, good = amesh_trust(EphemeralDevice("lost")), amesh_trust(EphemeralDevice("good"))
    begin_anew(clock)
    line.events = [hub.event("revoke", lost)]
    assert [status(device) for device in (lost, good, lost, good)] == [401, 200, 401, 200]
    (question,) = line.asked
    assert (question.audience, question.epoch, question.after) == (hub.id, hub.epoch, 0)
    clock.ahead += 89
    hub.sent, line.events = 1, []
    assert status(good) == 200 and len(line.asked) == 1
    clock.ahead += 2
    assert status(good) == 200 and len(line.asked) == 2


def test_a_machine_that_slept_asks(hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust) -> None:
    """Also just after its last question. A clock that is set back makes the pause no longer."""
    lost = amesh_trust()
    begin_anew(clock)
    assert status(lost) == 200 and len(line.asked) == 1
    clock.ahead += 3600
    clock.slept += 3600
    line.events = [hub.event("revoke", lost)]
    assert status(lost) == 401 and len(line.asked) == 2
    clock.ahead -= 1800
    clock.slept -= 1800 + 3600  # the steady clock shows an hour more
    assert status(lost) == 401 and len(line.asked) == 3


def test_a_server_that_hears_its_hub_does_not_ask(hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust) -> None:
    """Neither does the hub's own message wait for anything, nor for the hub that sends it."""
    device = amesh_trust()
    begin_anew(clock)
    hub.say()
    Hub.objects.update(lease_by="")
    assert not line.asked
    lifecycle.reset()
    freshness._freshness._started -= 5
    assert status(device) == 200 and not line.asked


def test_a_row_that_was_forged_says_nothing(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, settings: Any
) -> None:
    """It neither makes the server fresh, nor sends its question elsewhere."""
    device = amesh_trust()
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse", "HUB_MAX_STALE_SECONDS": 1}
    begin_anew(clock)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_hub SET last_contact_at = '2999-01-01 00:00:00', url = 'https://evil.example/'")
    clock.ahead += 5
    assert status(device) == 503 and not line.asked
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM amesh_hub")
    clock.ahead += 5
    assert status(device) == 503 and not line.asked


def test_a_hub_that_is_away_with_allow(hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, caplog: Any) -> None:
    device = amesh_trust()
    line.is_down = True
    begin_anew(clock)
    assert status(device) == status(device) == 200 and len(line.asked) == 1
    assert "trust_is_stale" not in caplog.text and "Nobody answers" in caplog.text
    assert doctor_on_hubs() == [("ok", ANY)]
    heard = Hub.objects.get().last_contact_at.isoformat(timespec="seconds")
    clock.ahead += 301
    assert status(device) == status(device) == 200 and len(line.asked) == 2
    assert caplog.text.count("trust_is_stale") == 1 and "is 'allow'" in caplog.text
    assert doctor_on_hubs() == [
        ("ok", ANY),
        (
            "warning",
            f"The hub {hub.id} was heard last at {heard}. A device that was revoked there may still be accepted, "
            "because AMESH['WHEN_STALE'] is 'allow'.",
        ),
    ]
    clock.ahead += 0.5
    assert status(device) == 200 and len(line.asked) == 2  # not asked at each request
    clock.ahead += 0.6
    line.is_down, line.events = False, [hub.event("revoke", device)]
    assert status(device) == 401 and len(line.asked) == 3
    assert doctor_on_hubs() == [("ok", ANY)]


@pytest.mark.parametrize(
    ("seconds", "answer", "pause"),
    [(0, None, 1), (0.5, None, 5), (9, None, 10), (0, (503, "down"), 1), (0, (403, "not_following"), 10)],
)
def test_a_hub_that_is_away_is_asked_again_soon(
    hub: TestHub,
    line: Line,
    clock: Clock,
    amesh_trust: Trust,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    answer: tuple[int, str] | None,
    pause: float,
) -> None:
    """The less a question costs, the sooner. A hub that refuses is there, and will refuse again."""
    device, asked = amesh_trust(), list[float]()

    def post(url: str, body: bytes, **options: Any) -> posting.Answer:
        asked.append(clock.ahead)
        clock.ahead += seconds
        if answer is None:
            raise posting.NoAnswer("Nobody answers.")
        return posting.Answer(answer[0], {}, json.dumps({"error": answer[1]}).encode())

    monkeypatch.setattr(posting, "post", post)
    begin_anew(clock)
    assert status(device) == 200
    clock.ahead += pause - 0.1
    assert status(device) == 200 and len(asked) == 1
    clock.ahead += 1
    assert status(device) == 200 and len(asked) == 2


def test_a_hub_that_is_away_with_refuse(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, settings: Any, caplog: Any
) -> None:
    """503 from the decorator, REST framework, the middleware, and the address for load balancers; the hub itself is heard."""
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse"}
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware"]
    settings.AMESH = {**settings.AMESH, "PROTECT": ["/middleware/"]}
    device = amesh_trust()
    line.is_down = True
    begin_anew(clock)
    assert status(device) == 200
    clock.ahead += 301
    lifecycle.health.reset()
    assert Client().get("/amesh/health").status_code == 503
    for response in (AmeshClient(device).get(CHECK_PATH), AmeshAPIClient(device).get("/drf")):
        assert (response.status_code, response.json()) == (503, {"error": "trust_is_stale"})
        assert int(response.headers["Retry-After"]) > 0
    assert hub.id in caplog.text and "trust_is_stale" in caplog.text
    clock.ahead += 1
    assert AmeshClient(device).get("/middleware/sync").status_code == 503
    hub.say()  # the hub finds the way back by itself
    clock.ahead -= 302
    lifecycle.reset()
    line.is_down = False
    assert status(device) == 200
    assert Client().get("/amesh/health").status_code == 200


def test_a_hub_that_was_never_heard_has_some_time(
    amesh_server: LocalDevice, db: None, clock: Clock, amesh_trust: Trust, settings: Any
) -> None:
    """As long as the hub of a pairing has not said anything, the server counts from the time at which it became a hub."""
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse"}
    device = amesh_trust()
    TestHub(amesh_server.identity.device_id).trusted("revoke")
    lifecycle.reset()
    assert status(device) == 200 and len(doctor_on_hubs()) == 1
    clock.ahead += 301
    assert status(device) == 503
    ((_ok, _nothing), (bad, text)) = doctor_on_hubs()
    assert bad == "problem" and "All signed requests are rejected" in text


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_hub_that_replaces_its_key_is_not_silent(
    amesh_server: LocalDevice, db: None, clock: Clock, amesh_trust: Trust, settings: Any, is_heard: bool
) -> None:
    """Neither with the new key, which may have sent nothing yet, nor with the old one, which is valid in the overlap and silent."""
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse"}
    device, hub = amesh_trust(), TestHub(amesh_server.identity.device_id).trusted("revoke")
    if is_heard:
        hub.greet()
    old, hub.device = hub.device, EphemeralDevice("hub")
    assert ask(old, hub.device, amesh_server).status_code == 200
    lifecycle.reset()
    assert status(device) == 200
    clock.ahead += 301
    assert status(device) == 503
    hub.greet() if not is_heard else hub.say()
    clock.ahead -= 300
    lifecycle.reset()
    assert status(device) == status(old) == 200 and follows(current_list().snapshot(), 0) == [
        (hub.device.identity.public_key, ANY)
    ]


@pytest.fixture
def lines(hub: TestHub, line: Line, monkeypatch: pytest.MonkeyPatch) -> tuple[Line, Line]:
    """The lines to two hubs, of which the second one is new."""
    second = Line(TestHub(hub.server).trusted("revoke"))
    second.hub.url = "https://second.example/amesh/"
    second.hub.greet()

    def post(url: str, body: bytes, **options: Any) -> posting.Answer:
        return (second if url.startswith(second.hub.url) else line).post(url, body, **options)

    monkeypatch.setattr(posting, "post", post)
    return line, second


def test_a_hub_waits_for_what_the_others_say_of_it(lines: tuple[Line, Line], clock: Clock, amesh_trust: Trust) -> None:
    """Otherwise a hub that was revoked by another one could still change what it likes at a server that was away."""
    (line, second), device = lines, amesh_trust()
    hub = line.hub
    begin_anew(clock)
    second.events = [second.hub.event("revoke", hub.device)]
    assert hub.post(hub.message(hub.event("revoke", device))).status_code == 401
    assert len(second.asked) == 1 and not line.asked
    assert status(device) == 200


def test_two_silent_hubs_do_not_keep_each_other_out(
    lines: tuple[Line, Line], clock: Clock, amesh_trust: Trust, settings: Any
) -> None:
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse"}
    (line, second), device = lines, amesh_trust()
    line.is_down = second.is_down = True
    begin_anew(clock)
    clock.ahead += 301
    assert line.hub.say(line.hub.event("revoke", EphemeralDevice())).applied == 1
    assert (len(line.asked), len(second.asked)) == (0, 1)
    assert status(device) == 503 and second.hub.say().applied == 0
    assert (len(line.asked), len(second.asked)) == (
        1,
        1,
    )  # that the other hub was asked holds back no question to this one
    clock.ahead -= 300
    lifecycle.reset()
    line.is_down = second.is_down = False
    assert status(device) == 200


FORGERIES: dict[str, Callable[[Line], None]] = {
    "no signature": lambda line: setattr(line, "rewrite", lambda body, signature: (body, "")),
    "no base64": lambda line: setattr(line, "rewrite", lambda body, signature: (body, "???")),
    "another body": lambda line: setattr(line, "rewrite", lambda body, signature: (body + b" ", signature)),
    "another key": lambda line: setattr(line, "signer", EphemeralDevice("evil")),
    "an answer to another question": lambda line: setattr(line, "nonce", "recorded"),
    "an answer to another server": lambda line: setattr(line.hub, "server", "am_other"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_answer_that_is_not_the_hubs_changes_nothing(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, forgery: str, caplog: Any
) -> None:
    device = amesh_trust()
    begin_anew(clock)
    line.events = [hub.event("revoke", device)]
    FORGERIES[forgery](line)
    assert status(device) == 200 and len(line.asked) == 1
    assert Hub.objects.get().applied == 0
    assert "not signed by the expected device" in caplog.text


def test_a_server_without_hubs_pays_nothing(amesh_trust: Trust, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    device = amesh_trust()

    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as found:
            assert status(device) == 200
        return len(found)

    queries()
    with_fleet = queries()
    monkeypatch.setattr("amesh_django.verification.hooks._before_lookup", [])
    assert queries() == with_fleet
    monkeypatch.undo()
    clock = Clock(monkeypatch)
    clock.ahead += 61
    assert queries() <= with_fleet + 1 and queries() == with_fleet


def test_the_log_says_why_a_hub_cannot_be_asked(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = amesh_trust()
    begin_anew(clock)
    refusal = posting.Answer(403, {}, b'{"error": "not_following"}')
    monkeypatch.setattr(posting, "post", lambda *words, **options: refusal)
    with caplog.at_level(logging.WARNING):
        assert status(device) == 200
    assert "The hub answered 403 (not_following)." in caplog.text


def test_a_server_that_follows_a_hub_is_warned(
    amesh_server: LocalDevice, db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned() -> list[str | None]:
        return [found.id for found in check_hubs(None, databases=["default"])]

    DatabaseAllowList(by="person").add(EphemeralDevice("laptop").entry())
    assert warned() == []
    TestHub(amesh_server.identity.device_id).trusted("revoke")
    assert warned() == ["amesh.W020"]
    settings.AMESH = {**settings.AMESH, "WHEN_STALE": "refuse"}
    assert warned() == []
    monkeypatch.setattr(signed_list, "jwt", None)
    assert warned() == ["amesh.W021"]
    assert check_hubs(None, databases=None) == []


def test_a_hub_that_breaks_something_does_not_keep_the_others_from_being_asked(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = amesh_trust()
    other = TestHub(hub.server).trusted("revoke")
    other.url = hub.url
    other.greet()
    asked = []

    def break_something(followed: Any, **options: Any) -> None:
        asked.append(followed.device.device_id)
        raise OverflowError

    monkeypatch.setattr(freshness, "pull", break_something)
    begin_anew(clock)
    assert status(device) == 200 and sorted(asked) == sorted([hub.id, other.id])


def test_a_database_that_fails_while_the_hubs_are_looked_up(
    hub: TestHub, line: Line, clock: Clock, amesh_trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = amesh_trust()
    begin_anew(clock)

    def fail(rows: Any) -> Any:
        raise OperationalError("gone")

    monkeypatch.setattr(silence.HubRows, "every", fail)
    response = AmeshClient(device).get(CHECK_PATH)
    assert (response.status_code, response.json()["error"]) == (503, "allow_list_unavailable")
