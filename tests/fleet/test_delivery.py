"""Delivery: one server gets what it lacks, whatever the other end and the network do."""

from __future__ import annotations

import datetime as dt
import json
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from django.utils import timezone

from amesh_django.checks.fleet import check_fleet
from amesh_django.fleet import delivery, feed, overview, posting, servers
from amesh_django.fleet.delivery import pause_after
from amesh_django.fleet.leases import LEASE_SECONDS, Lease, moment_of
from amesh_django.models import AuditEvent, Server
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current
from authmesh.protocol.fleet.feed import FeedMessage
from tests.fleet.peers import Clock, Peer, Reply
from tests.fleet.servers import follow, hub, laptops
from tests.trust.rollbacks import Backup

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


def followed(other: Peer, clock: Clock, **options: Any) -> Server:
    """A server that is up to date."""
    server = follow(other, **options)
    delivery.deliver(server.pk, now=clock)
    other.messages.clear()
    server.refresh_from_db()
    assert not servers.is_dirty(server, servers.head()) and server.last_error == ""
    return server


def delivered(server: Server, clock: Clock) -> Server:
    delivery.deliver(server.pk, now=clock)
    server.refresh_from_db()
    assert (server.lease_by, server.lease_until) == ("", None)
    return server


def test_a_server_gets_what_it_lacks_and_then_nothing(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    one, two = (device.identity.device_id for device in laptops(2))
    hub().suspend([one])
    hub().revoke_all([two], reason="lost")
    delivered(server, clock)
    delivered(server, clock)
    assert other.told() == [("suspend", one), ("revoke", two)] and len(other.messages) == 1
    assert (server.epoch, server.acked) == servers.head() == (other.epoch, other.applied)
    assert server.attempts == 0 and server.last_ok_at is not None
    clock.now += 29
    delivered(server, clock)
    clock.now += 2
    delivered(server, clock)  # the sign of life
    assert [len(message.events) for message in other.messages] == [2, 0] and len(set(other.nonces)) == len(other.nonces)


def test_a_new_server_is_sent_the_list_at_once_and_the_log_has_the_delivery(
    other: Peer, clock: Clock, django_capture_on_commit_callbacks: Any
) -> None:
    (device,) = laptops(1)
    server = follow(other, scope_of_events="enroll", groups=["*"])
    with django_capture_on_commit_callbacks(execute=True):
        delivered(server, clock)
    (message,) = other.messages
    assert (bool(message.revocations), other.told()) == (True, [("trust", device.identity.device_id)])
    event = AuditEvent.objects.get(kind="delivery")
    assert event.device_id == server.device_id and json.loads(event.data)["applied"] == servers.head().revision


def test_more_than_a_message_holds_is_sent_in_pieces(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_EVENTS", 3)
    server = followed(other, clock)
    names = [device.identity.device_id for device in laptops(8)]
    for name in names:
        hub().revoke_all([name])
    delivered(server, clock)
    assert other.told() == [("revoke", name) for name in names]
    assert [len(message.events) for message in other.messages] == [3, 3, 2]
    assert server.acked == servers.head().revision


def test_a_server_that_was_restored_gets_again_what_it_has_lost(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    before = other.applied
    one, two = (device.identity.device_id for device in laptops(2))
    hub().revoke_all([one])
    delivered(server, clock)
    other.applied = before  # its backup
    hub().revoke_all([two])
    delivered(server, clock)
    assert other.told() == [("revoke", one), ("revoke", two), ("revoke", one), ("revoke", two)]
    other.epoch = ""  # a backup from before it knew this hub
    hub().reinstate(one)
    delivered(server, clock)
    assert [bool(message.revocations) for message in other.messages[-2:]] == [False, True]
    assert (server.epoch, server.acked, server.last_error) == (*servers.head(), "")


def test_a_cursor_that_was_moved_with_sql_is_corrected_by_the_next_sign_of_life(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    (device,) = laptops(1)
    hub().revoke_all([device.identity.device_id])
    Server.objects.update(acked=servers.head().revision)  # as if the server had it
    delivered(server, clock)
    assert not other.messages
    clock.now += 31
    delivered(server, clock)
    assert other.told() == [("revoke", device.identity.device_id)] and other.applied == servers.head().revision


def test_a_server_that_asks_for_the_list_gets_it_once(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    laptops(1)

    def asks(message: FeedMessage, reply: Reply) -> Reply:
        other.applied = message.after
        return 409, other.acknowledge(message, other.nonces[-1], needs=True), {}

    other.behave = asks
    delivered(server, clock)
    assert [bool(message.revocations) for message in other.messages] == [False, True]
    assert "does not apply the changes" in server.last_error and server.attempts == 1


def test_a_server_that_does_not_move_is_not_asked_in_a_circle(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    before = other.applied
    laptops(1)

    def stays(message: FeedMessage, reply: Reply) -> Reply:
        other.applied = before
        return 200, other.acknowledge(message, other.nonces[-1]), {}

    other.behave = stays
    for attempts in (1, 2):
        delivered(server, clock)
        assert (len(other.messages), server.attempts) == (attempts, attempts)
        clock.now += 2


def test_what_a_server_refuses_is_shown(other: Peer, clock: Clock) -> None:
    server = followed(other, clock, scope_of_events="enroll", groups=["*"])
    other.refuses = "max_controllers"
    devices = [laptops(1)[0].identity.device_id for _ in range(2)]
    delivered(server, clock)
    Server.objects.update(acked=0)
    delivered(server, clock)
    found = json.loads(server.refused_json)
    assert [(one["device"], one["event"], one["why"]) for one in found] == [
        (device, "trust", "max_controllers") for device in reversed(devices)
    ]
    assert server.acked == servers.head().revision


def test_changes_that_a_server_holds_back_are_sent_later(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    laptops(1)

    def holds(message: FeedMessage, reply: Reply) -> Reply:
        other.applied = message.after
        return 429, other.acknowledge(message, other.nonces[-1]), {"Retry-After": "40"}

    other.behave = holds
    delivered(server, clock)
    assert "holds changes back" in server.last_error and server.attempts == 0
    clock.now += 39
    delivered(server, clock)
    assert len(other.messages) == 1
    other.behave = lambda message, reply: reply
    clock.now += 2
    delivered(server, clock)
    assert len(other.messages) == 2 and server.last_error == ""


FORGED = EphemeralDevice("in between")
FAILURES: dict[str, tuple[Any, str]] = {
    "unsigned": (
        lambda other, message, reply: (200, {"epoch": message.epoch, "applied": message.until}, {}),
        "not signed",
    ),
    "forged": (
        lambda other, message, reply: (200, other.acknowledge(message, other.nonces[-1], by=FORGED), {}),
        "not signed",
    ),
    "of another request": (
        lambda other, message, reply: (200, other.acknowledge(message, "another nonce"), {}),
        "not signed",
    ),
    "another number": (lambda other, message, reply: (200, {**reply[1], "applied": 10**6}, {}), "not signed"),
    "not JSON": (lambda other, message, reply: (200, b"<html>", {}), "not signed"),
    "deep": (lambda other, message, reply: (200, b"[" * 100_000, {}), "not signed"),
    "redirect": (lambda other, message, reply: (307, {}, {"Location": "/elsewhere"}), "redirects"),
    "too large": (lambda other, message, reply: (200, b" " * 300_000, {}), "larger than 256 KiB"),
    "refused": (lambda other, message, reply: (403, {"error": "wrong_audience"}, {}), "403 wrong_audience"),
    "refused in words": (lambda other, message, reply: (403, {"error": "<script>"}, {}), "answered 403. On"),
    "unknown": (lambda other, message, reply: (401, {"error": "unauthorized"}, {}), "amesh_list"),
    "busy": (lambda other, message, reply: (429, {"error": "rate_limited"}, {"Retry-After": "7"}), "429 rate_limited"),
    "down": (lambda other, message, reply: (502, b"Bad gateway", {}), "answered 502"),
    "cut off": (lambda other, message, reply: None, "broke"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_only_an_answer_that_the_server_has_signed_moves_the_cursor(
    how: str, other: Peer, clock: Clock, caplog: pytest.LogCaptureFixture, django_capture_on_commit_callbacks: Any
) -> None:
    server = followed(other, clock)
    before = (server.epoch, server.acked)
    laptops(1)
    behave, text = FAILURES[how]
    other.behave = lambda message, reply: behave(other, message, reply)
    with django_capture_on_commit_callbacks(execute=True), caplog.at_level(logging.WARNING, "amesh_django.fleet"):
        delivered(server, clock)
    assert (server.epoch, server.acked) == before and servers.is_dirty(server, servers.head())
    assert text in server.last_error and server.attempts == len(other.messages) == 1
    assert server.device_id in caplog.text
    assert AuditEvent.objects.get(kind="delivery_failed").text == server.last_error
    assert server.next_attempt_at is not None
    pause = server.next_attempt_at.timestamp() - clock.now
    assert pause == pytest.approx(7 if how == "busy" else 0.5, abs=0.01)
    other.behave = lambda message, reply: reply
    delivered(server, clock)
    assert len(other.messages) == 1  # not due yet
    clock.now += 8
    delivered(server, clock)
    assert not servers.is_dirty(server, servers.head()) and (server.attempts, server.last_error) == (0, "")


def test_a_server_that_cannot_be_reached_is_tried_for_ever(clock: Clock) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        other = Peer(port=closed.getsockname()[1])
        server = follow(other)
        delivered(server, clock)
        assert "could not be reached" in server.last_error
        Server.objects.update(attempts=10**6)
        clock.now += 1
        delivered(server, clock)
    assert server.attempts == 10**6 + 1 and server.next_attempt_at is not None
    assert 45 <= server.next_attempt_at.timestamp() - clock.now <= 75


def test_the_pauses_between_attempts() -> None:
    pauses = [pause_after(attempts) for attempts in range(1, 400)]
    assert pauses[:3] == [0.5, 1, 1]
    assert 119 <= sum(pauses[:121]) <= 122 and pauses[121] == 5
    assert 595 <= sum(pauses[:217]) <= 605 and pauses[217] == pauses[-1] == 60
    assert pause_after(1000, 0.75) == 45 and pause_after(1000, 1.25) == 75


@pytest.mark.parametrize("how", ["silent", "dribbles"])
def test_a_server_that_hangs_is_left_in_time(how: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends nothing, or a byte now and then, so that no single read takes long."""
    monkeypatch.setattr(posting, "TOTAL_SECONDS", 0.4)
    monkeypatch.setattr(delivery, "LIST_SECONDS", 0.4)
    ended = threading.Event()

    def dribble(listening: socket.socket) -> None:
        connection, _address = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = follow(Peer(port=listening.getsockname()[1]))
        if how == "dribbles":
            threading.Thread(target=dribble, args=(listening,), daemon=True).start()
        started = time.monotonic()
        delivered(server, clock)
        ended.set()
    assert "within 0.4 seconds" in server.last_error and time.monotonic() - started < 5


def test_a_row_that_was_changed_outside_django_is_sent_nothing(
    other: Peer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server = followed(other, clock)
    laptops(1)
    Server.objects.update(url=other.url.replace("/amesh/", "/evil/"))
    with caplog.at_level(logging.CRITICAL, "amesh_django.fleet"):
        delivered(server, clock)
    assert not other.messages and "changed outside Django" in caplog.text


def test_a_server_that_was_revoked_at_the_hub_is_sent_nothing(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    hub().revoke_all([server.device_id])
    delivered(server, clock)
    assert not other.messages and "does not trust the server" in server.last_error


def test_a_server_that_is_paused_leased_or_not_due_is_left_alone(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    laptops(1)
    servers.pause(server.device_id)
    delivered(server, clock)
    servers.resume(server.device_id)
    later = timezone.now() + dt.timedelta(seconds=5)
    Server.objects.update(lease_until=later, lease_by="another")
    delivery.deliver(server.pk, now=clock)
    assert not other.messages and Server.objects.get().lease_by == "another"
    clock.now += 20  # the process that had the lease was killed
    delivered(server, clock)
    assert len(other.messages) == 1
    laptops(1)
    far = timezone.now() + dt.timedelta(days=1)  # a host with a wrong clock
    Server.objects.update(lease_until=far, lease_by="another", next_attempt_at=far)
    delivered(server, clock)
    assert len(other.messages) == 2


def test_a_lease_that_was_lost_moves_no_cursor(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    before = server.acked
    laptops(1)
    lease = Lease("default", server.pk, clock)
    taken = lease.take()
    assert taken is not None
    Server.objects.update(lease_by="another")
    assert not lease.save(taken, acked=10**6)
    lease.release()
    found = Server.objects.get()
    assert (found.acked, found.lease_by) == (before, "another")


def test_a_lease_is_renewed_before_the_message_is_sent_and_ends_soon_after_a_kill(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the message took to make, the lease outlasts the POST. It may not by much: that is how long a server waits after a kill."""
    server = followed(other, clock)
    laptops(1)
    left: list[float] = []

    def tick() -> float:
        clock.now += 1
        return clock.now

    def post(*args: Any, **options: Any) -> posting.Answer:
        until = Server.objects.values_list("lease_until", flat=True).get()
        assert until is not None
        left.append((until - moment_of(clock.now)).total_seconds())
        return real(*args, **options)

    real = posting.post
    monkeypatch.setattr(posting, "post", post)
    delivery.deliver(server.pk, now=tick)
    assert left == [LEASE_SECONDS] and posting.TOTAL_SECONDS + 1 < LEASE_SECONDS <= posting.TOTAL_SECONDS + 3


def test_a_message_is_not_sent_if_another_has_got_the_lease_meanwhile(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    laptops(1)
    calls = iter(range(100))

    def slow() -> float:
        if next(calls):  # after the lease was taken
            Server.objects.update(lease_by="another")
        return clock.now

    delivery.deliver(server.pk, now=slow)
    assert not other.messages and Server.objects.get().lease_by == "another"


def test_a_hub_that_was_restored_says_so(other: Peer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    server = followed(other, clock)
    other.applied += 1000
    laptops(1)
    with caplog.at_level(logging.CRITICAL, "amesh_django.fleet"):
        delivered(server, clock)
    assert "an older list was restored here" in caplog.text and len(other.messages) == 1
    assert "an older list was restored here" in server.last_error


def test_a_server_that_goes_on_and_back_is_not_asked_without_a_pause(other: Peer, clock: Clock) -> None:
    server = followed(other, clock)
    before = other.applied
    laptops(1)
    laptops(1)

    def alternates(message: FeedMessage, reply: Reply) -> Reply:
        other.applied = before - len(other.messages) % 2
        return 200, other.acknowledge(message, other.nonces[-1]), {}

    other.behave = alternates
    delivered(server, clock)
    assert len(other.messages) <= 3 and server.attempts == 1 and "does not apply" in server.last_error


def test_an_error_that_nobody_expected_waits_and_is_shown(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = followed(other, clock)
    laptops(1)

    def fails(*args: Any, **options: Any) -> None:
        raise httpx.InvalidURL("secret")

    monkeypatch.setattr(posting, "post", fails)
    delivered(server, clock)
    assert (server.attempts, server.last_error) == (1, "The delivery failed (InvalidURL). The log of the hub has more.")
    assert server.next_attempt_at is not None


def test_a_list_has_more_time_and_a_longer_lease(other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server seals all of it before it answers. Without that time, it would get the list again and again."""
    server, seconds = follow(other), []

    def looks(*args: Any, **options: Any) -> None:
        lease = Server.objects.get().lease_until
        assert lease is not None
        seconds.append((options["seconds"], round((lease - moment_of(clock())).total_seconds())))
        raise posting.NoAnswer("No.")

    monkeypatch.setattr(posting, "post", looks)
    delivered(server, clock)
    assert seconds == [(20.0, 23)]


def test_a_server_cannot_give_us_cookies(other: Peer, clock: Clock) -> None:
    """They would be sent to other servers of its domain, and make their requests too large."""
    server = follow(other)
    other.behave = lambda message, reply: (reply[0], reply[1], {"Set-Cookie": "a=b; Path=/"})
    delivered(server, clock)
    assert other.messages and posting._poster is not None and not list(posting._poster._client.cookies.jar)


def test_a_revision_with_very_many_events_has_the_time_of_a_list(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = followed(other, clock)
    names = [device.identity.device_id for device in laptops(3)]
    delivered(server, clock)
    seconds, post = list[float](), posting.post

    def posts(*args: Any, **options: Any) -> Any:
        seconds.append(options["seconds"])
        return post(*args, **options)

    monkeypatch.setattr(posting, "post", posts)
    monkeypatch.setattr(delivery, "MAX_EVENTS", 2)
    hub().revoke_all(names)
    delivered(server, clock)
    hub().reinstate(names[0])
    delivered(server, clock)
    assert seconds == [delivery.LIST_SECONDS, posting.TOTAL_SECONDS]


def test_a_message_that_takes_long_to_make_is_sent_nevertheless(
    other: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise another process would take the lease each time, and make it again."""
    server, make = follow(other), delivery.message_for

    def slow(*args: Any, **options: Any) -> FeedMessage:
        clock.now += 7
        Server.objects.filter(pk=server.pk, lease_until__lte=moment_of(clock())).update(lease_by="another process")
        return make(*args, **options)

    monkeypatch.setattr(delivery, "message_for", slow)
    delivery.deliver(server.pk, now=clock)
    assert len(other.messages) == 1 and other.messages[0].revocations
    hub().revoke_all([device.identity.device_id for device in laptops(1)])
    delivery.deliver(server.pk, now=clock)
    assert len(other.messages) == 1 and "took too long to make" in caplog.text


def test_a_hub_that_was_restored_unnoticed_says_so_until_it_is_resealed(other: Peer, clock: Clock) -> None:
    """Also when its list has grown past what the server has: the serials between stand for other changes there."""
    server = followed(other, clock)
    backup, rows = Backup(), Server.objects.values().get()
    laptops(1)
    laptops(1)
    delivered(server, clock)
    backup.restore()
    Server.objects.filter(pk=server.pk).update(**rows)
    current.reset()  # the host is a new one, too
    assert servers.head().revision < other.applied and overview.every()[0].state != "ahead"

    laptops(1)
    delivered(server, clock)
    (device,) = laptops(1)
    laptops(1)
    assert servers.head().revision > server.acked and overview.every()[0].state == "ahead"
    delivered(server, clock)  # what is newer is told in any case
    assert (server.acked, server.last_error) == (servers.head().revision, "")
    assert overview.every()[0].state == "ahead"
    assert "amesh.W022" in [one.id for one in check_fleet(None, databases=["default"])]
    hub().revoke(device.identity.device_id)
    delivered(server, clock)
    assert overview.acknowledged(servers.head().revision) == (0, 1)

    hub().reseal()
    clock.now += 1
    delivered(server, clock)
    assert server.epoch == servers.head().epoch and overview.every()[0].state == "up_to_date"
    assert "amesh.W022" not in [one.id for one in check_fleet(None, databases=["default"])]


def test_a_server_that_has_asked_for_more_meanwhile_is_not_ahead(other: Peer, clock: Clock) -> None:
    server, heads = followed(other, clock), list[int]()

    def answers(message: FeedMessage, reply: Reply) -> Reply:
        other.applied = heads[-1]
        return 200, other.acknowledge(message, other.nonces[-1]), {}

    def changing() -> float:
        if len(heads) == 4:  # the message is being made
            laptops(1)
        heads.append(servers.head().revision)
        return clock.now

    other.behave = answers
    laptops(1)
    delivery.deliver(server.pk, now=changing)
    server.refresh_from_db()
    assert other.messages[0].head < heads[-1]
    assert (server.acked, server.ahead_epoch) == (servers.head().revision, "")
