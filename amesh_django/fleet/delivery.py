"""Delivery: one server gets what it lacks. Nothing of it happens inside a transaction (theory of operation, 5 and 6)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from django.db import DatabaseError

from amesh_django.audit.recording import record
from amesh_django.kinds import EventKind
from amesh_django.models import Server
from amesh_django.server import server_device
from amesh_django.signals import changes_acknowledged
from amesh_django.spelling import manage_py
from amesh_django.trust.chain import Actor
from amesh_django.trust.database import database
from authmesh.client.signing import NONCE_BYTES, sign_request
from authmesh.protocol.encoding import b64url_encode, format_time
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.fleet.errors import UnverifiedMessage
from authmesh.protocol.fleet.feed import FEED_PATH, MAX_EVENTS, Acknowledgement, FeedMessage

from . import posting, servers
from .feed import message_for
from .leases import Lease, moment_of
from .rarely import rarely

logger = logging.getLogger("amesh_django.fleet")

#: Seconds without a message after which a server gets an empty one.
HEARTBEAT_SECONDS = 30.0
#: Longest time that one delivery goes on before it leaves the rest to the next.
_MAX_SECONDS = 30.0
#: Refusals that the row of a server keeps.
_MAX_REFUSED = 50
_MAX_RETRY_SECONDS = 300.0
#: Time for a message with the whole list, or a revision with very many events, which the server seals before it answers.
LIST_SECONDS = 20.0
_SYSTEM = Actor("amesh", "system")
_AHEAD = "The server has applied more than this hub has: an older list was restored here. Find out why, then reseal the list."
_HELD = "The server holds changes back, because this hub has made too many in a minute."
_HINTS = {
    401: "The server does not accept the key of this hub. On the server, check that manage.py amesh_list lists this hub as a controller.",
    403: "On the server, check that this hub has the permission revoke or enroll.",
    404: "Check that the address is that of amesh_django.urls on the server.",
}


class Failed(Exception):
    """The server did not acknowledge a message.

    Args:
        text: a sentence for people.
        retry_after: seconds that the server asks to wait.
    """

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Answered:
    """A verified answer to a message."""

    message: FeedMessage
    status: int
    acknowledged: Acknowledgement
    retry_after: float

    @property
    def is_progress(self) -> bool:
        """True if the server has applied something of the message."""
        found, message = self.acknowledged, self.message
        return found.epoch == message.epoch and found.applied > message.after


def deliver(pk: int, *, now: Callable[[], float] = time.time) -> None:
    """Send a server what it lacks, until it has all. Does nothing if it lacks nothing, is not due, or is being served.

    Args:
        pk: primary key of its row.
        now: returns Unix seconds.

    Raises:
        django.db.Error: the database is down. What the server lacks is sent later.
    """
    end, goes_on = now() + _MAX_SECONDS, True
    while goes_on:
        lease = Lease(database(), pk, now)
        server = lease.take()
        if server is None:
            return
        try:
            goes_on = _serve(server, lease, now, end)
        finally:
            lease.release()


def pause_after(attempts: int, spread: float = 1.0) -> float:
    """Return the seconds until the next attempt: half a second, then one for two minutes, five up to ten minutes, then about a minute.

    Args:
        attempts: how often it has failed in a row.
        spread: factor of the minute, so that not all servers are tried at once.
    """
    if attempts <= 1:
        return 0.5
    if attempts <= 121:
        return 1.0
    return 5.0 if attempts <= 217 else 60.0 * spread


def is_silent(server: Server, now: float) -> bool:
    """Return True if a server has been sent nothing for so long that it needs a sign of life."""
    sent = server.last_sent_at
    return sent is None or abs((moment_of(now) - sent).total_seconds()) >= HEARTBEAT_SECONDS


def _serve(server: Server, lease: Lease, now: Callable[[], float], end: float) -> bool:
    """Send a server what it lacks, until some time. Return True if it lacks what was changed until the lease was given back.

    Nobody was rung for that, because the lease was taken.
    """
    try:
        if not servers.is_genuine(server):
            report_forged(server)
            return False
        with_list, has_gone_back = False, False
        while now() < end:
            seen = servers.look()
            if not servers.is_dirty(server, seen.head) and not is_silent(server, now()):
                lease.release()
                return servers.is_dirty(server, servers.head())
            answered = _send(server, lease, now, seen, with_list=with_list)
            if answered is None:
                return False
            if not _accept(server, lease, answered, now, with_list=with_list, has_gone_back=has_gone_back):
                return False
            if lease.is_over:
                return servers.is_dirty(server, servers.head()) and now() < end
            with_list = answered.acknowledged.needs_list
            has_gone_back |= not answered.is_progress
    except Failed as failure:
        _fail(server, lease, str(failure), failure.retry_after, now)
    except AmeshError as error:
        _fail(server, lease, error.text(manage_py), 0.0, now)
    except DatabaseError:
        raise
    except Exception as error:  # of an address or a row that nobody expected: the pauses hold for it, too
        if rarely(f"unexpected {server.pk}"):
            logger.exception("The server %s could not be told of changes.", server.device_id)
        _fail(server, lease, f"The delivery failed ({type(error).__name__}). The log of the hub has more.", 0.0, now)
    return False


def report_forged(server: Server) -> None:
    """Log that a row was changed outside Django."""
    if rarely(f"forged server {server.pk}"):
        logger.critical(
            "The row of the server %s was changed outside Django. Nothing is sent to it. Find out who changed it. Then remove the server, "
            "and add it again.",
            server.device_id,
        )


def _send(
    server: Server, lease: Lease, now: Callable[[], float], seen: servers.Look, *, with_list: bool
) -> _Answered | None:
    """Send one message, and return the verified answer, or None if the lease ended while the message was made.

    Raises:
        Failed: there is none.
        AmeshError: the message cannot be made.
    """
    key, newest = servers.public_key_of(server.device_id, seen.snapshot), seen.head
    if key is None:
        raise Failed(
            "This hub does not trust the server any more, so it sends it nothing. Pair the server again, or remove it."
        )
    # To make a message with the whole list may take longer than a lease lives. It would be made again and again, and never be sent.
    is_far = with_list or server.epoch != newest.epoch or newest.revision - server.acked > MAX_EVENTS
    if is_far and not lease.renew(LIST_SECONDS):
        _report_lost(server)
        return None
    moment, device = now(), server_device()
    message = message_for(server, epoch=server.epoch, after=server.acked, now=moment, with_list=with_list, seen=seen)
    body = json.dumps(message.to_json(), separators=(",", ":")).encode()
    url, nonce = f"{server.url}{FEED_PATH}", b64url_encode(os.urandom(NONCE_BYTES))
    header = sign_request(
        device,
        method="POST",
        target=httpx.URL(url).raw_path.decode("ascii"),
        body_hash=hashlib.sha256(body).hexdigest(),
        now=moment,
        nonce=nonce,
    )
    is_large = message.revocations or len(message.events) > MAX_EVENTS
    seconds = LIST_SECONDS if is_large else posting.TOTAL_SECONDS
    if not lease.renew(seconds - posting.TOTAL_SECONDS):
        _report_lost(server)
        return None
    headers = {"Authorization": header, "Content-Type": "application/json"}
    try:
        answer = posting.post(url, body, headers=headers, seconds=seconds)
    except posting.NoAnswer as error:
        raise Failed(str(error)) from None
    retry_after = _retry_after(answer.headers)
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        value = None
    if answer.status not in (200, 409, 429) or (answer.status == 429 and not _is_signed(value)):
        raise Failed(_refusal(answer.status, value), retry_after)
    try:
        acknowledged = Acknowledgement.from_json(
            value, issuer=message.issuer, audience=message.audience, nonce=nonce, server_key=key
        )
    except UnverifiedMessage:
        logger.error("The answer from %s was not signed by the server %s. It is ignored.", server.url, server.device_id)
        raise Failed(
            "The answer was not signed by the server. Check the address, and that nothing in between rewrites messages.",
            retry_after,
        ) from None
    return _Answered(message, answer.status, acknowledged, retry_after)


def _is_signed(value: Any) -> bool:
    return isinstance(value, dict) and "sig" in value


def _refusal(status: int, value: Any) -> str:
    if 300 <= status < 400:
        return f"The server redirects to another address ({status}), which is not followed. Remove it, and add it with its own address."
    code = value.get("error") if isinstance(value, dict) else None
    word = f" {code}" if isinstance(code, str) and re.fullmatch(r"[a-z0-9_]{1,64}", code) else ""
    return f"The server answered {status}{word}. {_HINTS.get(status, '')}".rstrip()


def _report_lost(server: Server) -> None:
    """Log that a message took so long that another process may be sending it now."""
    if rarely(f"lease {server.pk}"):
        logger.warning(
            "The message for the server %s was not sent, because it took too long to make. Another process may have sent it.",
            server.device_id,
        )


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return min(float(text), _MAX_RETRY_SECONDS) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0


def _accept(
    server: Server,
    lease: Lease,
    answered: _Answered,
    now: Callable[[], float],
    *,
    with_list: bool,
    has_gone_back: bool,
) -> bool:
    """Store what a server has acknowledged. Return True if it may be sent more at once.

    A server that was restored may go back, once in a delivery: one that goes on and back must not be sent messages without a pause.

    Raises:
        Failed: the answer leads nowhere.
    """
    message, found = answered.message, answered.acknowledged
    moved = (found.epoch, found.applied) != (server.epoch, server.acked)
    asks = found.needs_list and not message.revocations
    is_ahead = found.epoch == message.epoch and found.applied > message.head and _is_lost(found)
    if is_ahead and rarely(f"ahead {server.pk}"):
        logger.critical(
            "The server %s has applied change %d of this hub, whose allow list ends at %d: an older list was restored here. Find out why. "
            "To carry changes on, reseal the list.",
            server.device_id,
            found.applied,
            message.head,
        )
    is_held = answered.status == 429
    lacks = (found.epoch, found.applied) != (message.epoch, message.head) and not is_ahead
    goes_on = answered.is_progress or (moved and not has_gone_back)
    is_stuck = lacks and not is_held and (with_list if asks else not goes_on)
    columns: dict[str, Any] = {
        "epoch": found.epoch[:32],
        "acked": found.applied,
        "last_ok_at": moment_of(now()),
        "last_sent_at": moment_of(now()),
        "refused_json": _refused(server, answered),
    }
    if is_ahead:
        columns["ahead_epoch"] = message.epoch
    if not is_stuck:
        pause = moment_of(now() + max(1.0, answered.retry_after)) if is_held else None
        columns |= {"next_attempt_at": pause, "last_error": _HELD if is_held else _AHEAD if is_ahead else ""}
        if answered.is_progress or not lacks or is_held:
            columns["attempts"] = 0
    if not lease.save(server, is_last=is_held or not lacks, **columns):
        return False
    if message.events or message.revocations:
        _record_delivery(server, answered)
    acknowledged = [event.at.timestamp() for event in message.events if event.serial <= found.applied]
    if acknowledged and found.epoch == message.epoch:
        changes_acknowledged.send_robust(sender=None, server=server, seconds=max(0.0, now() - min(acknowledged)))
    if is_stuck:
        raise Failed("The server does not apply the changes, although it answers. Look at its log.")
    return not is_held


def _is_lost(found: Acknowledgement) -> bool:
    """Return True if this hub does not have all that a server has: what it has asked for meanwhile is not lost."""
    newest = servers.head()
    return newest.epoch == found.epoch and found.applied > newest.revision


def _record_delivery(server: Server, answered: _Answered) -> None:
    message, found = answered.message, answered.acknowledged
    record(
        EventKind.DELIVERY,
        by=_SYSTEM,
        device_id=server.device_id,
        subject=server.url,
        data={
            "after": message.after,
            "until": message.until,
            "events": len(message.events),
            "list": bool(message.revocations),
            "epoch": found.epoch,
            "applied": found.applied,
            "refused": [[one.serial, one.device_id, one.why] for one in found.refused[:_MAX_REFUSED]],
        },
    )


def _refused(server: Server, answered: _Answered) -> str:
    """Return the newest refusals of a server, the newest first."""
    if not answered.acknowledged.refused:
        return server.refused_json
    events = {(event.serial, event.device_id): event for event in answered.message.events}
    new = []
    for one in answered.acknowledged.refused:
        event = events.get((one.serial, one.device_id))
        if event is not None:  # the rest was not asked
            new.append(
                {
                    "serial": one.serial,
                    "device": one.device_id,
                    "event": event.event,
                    "why": one.why,
                    "at": format_time(event.at),
                }
            )
    try:
        known = json.loads(server.refused_json)
    except ValueError:
        known = []
    old = [one for one in known if one not in new] if isinstance(known, list) else []
    return json.dumps([*reversed(new), *old][:_MAX_REFUSED])


def _fail(server: Server, lease: Lease, text: str, retry_after: float, now: Callable[[], float]) -> None:
    attempts = server.attempts + 1
    pause = max(pause_after(attempts, random.uniform(0.75, 1.25)), retry_after)  # noqa: S311 -- no secret
    kept = lease.save(
        server,
        is_last=True,
        attempts=attempts,
        next_attempt_at=moment_of(now() + pause),
        last_error=text,
        last_sent_at=moment_of(now()),
    )
    if kept and (attempts == 1 or rarely(f"failed {server.pk}")):
        logger.warning("The server %s could not be told of changes (attempt %d): %s", server.device_id, attempts, text)
    if kept and attempts == 1:
        record(EventKind.DELIVERY_FAILED, by=_SYSTEM, device_id=server.device_id, subject=server.url, text=text)
