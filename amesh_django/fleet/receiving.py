"""Receiving: a message of a hub is checked, applied, and acknowledged (docs/fleet.md §5)."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from amesh_django.audit.recording import record
from amesh_django.conf import amesh_settings
from amesh_django.decisions.hubs import author
from amesh_django.kinds import EventKind
from amesh_django.models import Device, Hub, HubEntry
from amesh_django.server import server_device
from amesh_django.trust import SealedList, current_list
from amesh_django.trust.change import Change
from amesh_django.trust.hubs import HubRows, stored_time
from amesh_django.verification import VerifiedDevice
from authmesh.protocol.enrollment import is_server_url
from authmesh.protocol.enrollment_errors import ServerBusy
from authmesh.protocol.errors import (
    AllowListBusy,
    AllowListIntegrityFailure,
    DirectoryError,
    KeyStoreError,
    TimestampOutOfRange,
)
from authmesh.protocol.fleet.errors import (
    MalformedFeed,
    NotAHub,
    OlderEpoch,
    PermissionMissing,
    UnverifiedMessage,
    WrongAudience,
)
from authmesh.protocol.fleet.feed import MAX_EVENTS, MAX_SKEW_SECONDS, Acknowledgement, FeedMessage, Refused

from . import signed_list
from .applying import Applying
from .following import ENROLL, HubDevice, is_hub, newest_id, newest_row
from .limits import Minute
from .parts import Part, parts_of
from .rarely import rarely

logger = logging.getLogger("amesh_django.fleet")

#: Words of one hub about keys that no device of this server has. No hub uses up what another one may say.
MAX_TOMBSTONES = 100_000
#: Epochs that their column can hold.
_MAX_PAST = 7

Verdict = Literal["apply", "gap", "list", "older_head", "older_epoch"]


@dataclass(slots=True)
class Received:
    """The result of one message, or of a part of one.

    Attributes:
        answer: what the server acknowledges.
        verdict: whether the message could be applied.
        is_held: True if the rest must wait, because the hub has changed as many devices as it may in this minute.
        retry_after: seconds until that minute is over.
        is_reported: True if it is known already that changes are held back.
        dropped: tombstones that were removed, because there were too many.
    """

    answer: Acknowledgement
    verdict: Verdict = "apply"
    is_held: bool = False
    retry_after: int = 0
    is_reported: bool = False
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a message.

    Attributes:
        status: 200; 409 if the message begins after events that this server lacks, or it needs the signed list; 429 if changes are held back.
        body: the signed JSON object.
        retry_after: seconds after which the rest may be sent; 0 for at once.
    """

    status: int
    body: dict[str, Any]
    retry_after: int = 0


def receive(message: FeedMessage, *, signer: VerifiedDevice, nonce: str, now: float) -> Answer:
    """Apply a message that a hub has sent, and return the signed answer.

    Args:
        message: the message, of which nothing is verified but the signature of the request.
        signer: the device that signed the request.
        nonce: nonce of the request, as in its header.
        now: Unix seconds.

    Raises:
        RequestError: the message is refused, or this server cannot decide now (docs/fleet.md §5). Nothing was changed.
    """
    try:
        device = server_device()
        own = device.identity.device_id
        _check(message, signer, own, now)
        found = _receive(message, signer, now)
        answer = found.answer
        body = answer.to_json(issuer=signer.device_id, audience=own, nonce=nonce, sign=device.sign)
    except AllowListBusy as error:
        raise ServerBusy(device_id=signer.device_id) from error
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason=error.code) from error
    if found.is_held:
        return Answer(429, body, found.retry_after)
    return Answer(409 if found.verdict in ("gap", "list") else 200, body)


def apply_message(
    message: FeedMessage, hub: HubDevice, *, now: float, heard_at: float | None = None
) -> Acknowledgement:
    """Apply a message whose author is known, and return what this server has of the hub's list then.

    Args:
        message: the message. The caller has checked that the hub signed it, and for this server.
        hub: the hub, from the sealed list.
        now: Unix seconds.
        heard_at: when the hub said it, if a person has brought it. The limit of a minute is not for what people do.

    Raises:
        FeedRefused: the message is refused. Nothing was changed.
        AllowListError: the allow list does not match its seal, or is busy. Nothing was changed.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    return _receive(message, hub, now, heard_at).answer


def _check(message: FeedMessage, signer: VerifiedDevice, own: str, now: float) -> None:
    if message.audience != own:
        raise WrongAudience(device_id=signer.device_id)
    if abs(message.issued_at - int(now)) > MAX_SKEW_SECONDS:
        raise TimestampOutOfRange(device_id=signer.device_id)


def _check_permission(sealed: SealedList, hub: HubDevice) -> None:
    if not is_hub(hub):
        known = Hub.objects.using(sealed.using).filter(device_id=hub.device_id).exists()
        raise PermissionMissing(device_id=hub.device_id) if known else NotAHub(device_id=hub.device_id)


def _receive(message: FeedMessage, hub: HubDevice, now: float, heard_at: float | None = None) -> Received:
    sealed = current_list()
    sealed.unlock()
    _check_permission(sealed, hub)
    if message.issuer != hub.device_id:
        raise NotAHub(device_id=hub.device_id, detail="iss is another device")
    if not message.events and not message.revocations:
        found = sealed.in_transaction(lambda: _contact(sealed, message, hub, now))
        _report(message, found)
        return found
    listed = _verified_list(sealed, message, hub, now) if message.revocations else None
    refused = list[Refused]()
    for part in parts_of(sealed, message, listed, hub):
        found = sealed.change(
            author(hub.device_id),
            lambda pending, part=part: _apply(  # type: ignore[misc]
                pending, message, part, hub.device_id, now, heard_at, listed=listed
            ),
        )
        refused += found.answer.refused
        if found.verdict != "apply" or found.is_held:
            break
    found.answer = replace(found.answer, refused=tuple(refused[-MAX_EVENTS:]))  # the answer must not become too large
    _report(message, found)
    return found


def _verified_list(sealed: SealedList, message: FeedMessage, hub: HubDevice, now: float) -> signed_list.SignedList:
    by_key = sealed.snapshot().by_key
    key = next((key for key, known in [*by_key.items()] if known.device_id == hub.device_id), b"")
    try:
        found = signed_list.verify(message.revocations, issuer=hub.device_id, issuer_key=key, now=now)
    except UnverifiedMessage as error:
        raise MalformedFeed(device_id=hub.device_id, detail=error.message) from None
    if found.epoch != message.epoch:
        raise MalformedFeed(device_id=hub.device_id, detail="the signed list has another epoch")
    return found


def _judge(row: Hub, message: FeedMessage) -> Verdict:
    """Return whether a message follows on what this server has."""
    if message.epoch != row.epoch:
        if message.epoch in row.past.split():
            return "older_epoch"
        return "apply" if message.revocations else "list"
    # A message that was overtaken by a newer one has a smaller head, too.
    if message.head < row.head and message.issued_at > row.issued_at:
        return "older_head"
    if message.revocations:
        return "apply"
    known = max(row.applied, row.list_serial if row.list_epoch == row.epoch else 0)
    if message.head - known > MAX_EVENTS:
        return "list"
    return "gap" if message.after > row.applied else "apply"


def _contact(sealed: SealedList, message: FeedMessage, hub: HubDevice, now: float) -> Received:
    """Note a message without events: all up to its end says nothing about devices. The list and its seal are not touched."""
    rows = HubRows(sealed.using, sealed.all_keys, sealed.log_keys())
    # The key may just have been replaced, so nothing is made for it.
    row = rows.lock(newest_id(sealed.snapshot(), hub.device_id), make=False)
    verdict = _judge(row, message)
    if verdict == "older_epoch":
        raise OlderEpoch(device_id=hub.device_id)
    if verdict == "apply":
        _advance(row, message, message.until, now)
        rows.save_hub(row)
    return _received(row, verdict)


def _apply(
    pending: Change,
    message: FeedMessage,
    part: Part,
    hub_id: str,
    now: float,
    heard_at: float | None,
    *,
    listed: signed_list.SignedList | None,
) -> Received:
    """Apply events inside a change, with the words of the hub and the number up to which all is applied."""
    device = newest_row(pending, hub_id)
    row = pending.hubs.lock(device.device_id)
    verdict = _judge(row, message)
    if verdict == "older_epoch":
        raise OlderEpoch(device_id=hub_id)
    if verdict != "apply":
        return _received(row, verdict)
    # Only the locked row tells: one that was changed outside Django counts as new, so it cannot make every list an older one.
    if listed is not None and listed.epoch == row.list_epoch and listed.serial < row.list_serial:
        raise MalformedFeed(device_id=hub_id, detail="the signed list is older than one that this server has accepted")
    minute = Minute(row, now, is_limited=heard_at is None)
    may_enroll = device.permissions.get(ENROLL) is True
    applying = Applying(pending, row, message.epoch, part.events, may_enroll=may_enroll, room=minute.room)
    waiting = next((event for event in part.events if not applying.apply(event)), None)
    is_reported = minute.count(applying.changed, is_held=waiting is not None)
    pending.hubs.put(row, applying.noted)
    dropped = _drop_tombstones(pending.hubs, row, len(applying.noted))
    if waiting is None and part.is_last:
        if listed is not None:
            row.list_epoch, row.list_serial = listed.epoch, listed.serial
        _advance(row, message, message.until, now, heard_at)
    elif waiting is not None and message.epoch == row.epoch and not part.is_list:
        row.applied = max(row.applied, min(waiting.serial - 1, message.until))
    pending.hubs.save_hub(row)
    # The list names keys that were replaced to every server, also to those that it does not concern.
    found = _received(row, verdict, () if part.is_list else applying.refused)
    found.is_held, found.retry_after = waiting is not None, minute.left(now)
    found.is_reported, found.dropped = is_reported, dropped
    return found


def _advance(row: Hub, message: FeedMessage, until: int, now: float, heard_at: float | None = None) -> None:
    """Note that all up to a serial is applied."""
    if message.epoch != row.epoch:
        row.past = " ".join([one for one in (row.epoch, *row.past.split()) if one][:_MAX_PAST])
        row.epoch, row.applied, row.head, row.issued_at = message.epoch, 0, 0, 0
    row.applied = max(row.applied, until)
    row.head = max(row.head, message.head)
    # A hub whose clock was ahead must not switch off the detection of an older list until then.
    row.issued_at = min(max(row.issued_at, message.issued_at), int(now) + MAX_SKEW_SECONDS)
    if message.url and is_server_url(message.url):
        row.url = message.url
    if row.applied >= row.head:  # only then this server knows all that the hub knows
        row.last_contact_at = stored_time(dt.datetime.fromtimestamp(now if heard_at is None else heard_at, dt.UTC))


def _received(row: Hub, verdict: Verdict, refused: Iterable[Refused] = ()) -> Received:
    return Received(Acknowledgement(row.epoch, row.applied, tuple(refused), verdict == "list"), verdict)


def _drop_tombstones(rows: HubRows, hub: Hub, count: int) -> int:
    """Remove the oldest words of a hub about unknown keys if there are too many. Return their number."""
    words = HubEntry.objects.using(rows.using).filter(hub=hub.device_id)
    if not count or words.count() <= MAX_TOMBSTONES:
        return 0
    devices = Device.objects.using(rows.using).values("device_id")
    too_many = words.exclude(device_id__in=devices).count() - MAX_TOMBSTONES
    if too_many <= 0:
        return 0
    oldest = rows.oldest_without_device(hub, too_many, devices)
    rows.remove(hub, oldest)
    return len(oldest)


def _report(message: FeedMessage, found: Received) -> None:
    """Tell the log and the audit log what a person must know, once it is committed."""
    hub = message.issuer
    if found.verdict == "older_head":
        if rarely(f"head {hub}"):
            logger.critical(
                "The hub %s says that its newest change is %d, but has said %d or more before: its database may have been restored from a "
                "backup. Nothing was changed here. At the hub, run: manage.py amesh_integrity",
                hub,
                message.head,
                found.answer.applied,
            )
            record(
                EventKind.FEED_REFUSED,
                by=author(hub),
                device_id=hub,
                reason_code="older_list",
                data={"head": message.head, "applied": found.answer.applied},
            )
    if found.is_held and not found.is_reported:
        limit = amesh_settings().HUB_MAX_PER_MINUTE
        logger.critical(
            "The hub %s has changed %d devices in this minute, which is the limit (AMESH['HUB_MAX_PER_MINUTE']). The rest waits. If nobody "
            "means to change so many, take its permissions away: manage.py amesh_grant %s --permission revoke --permission enroll --remove",
            hub,
            limit,
            hub,
        )
        record(
            EventKind.HUB_HELD, by=author(hub), device_id=hub, data={"limit": limit, "applied": found.answer.applied}
        )
    if found.dropped:
        logger.warning(
            "%d of the oldest words of the hub %s about keys that no device here has were removed: there were more than %d.",
            found.dropped,
            hub,
            MAX_TOMBSTONES,
        )
    refused = [one for one in found.answer.refused if one.why not in ("known_here", "pending")]
    if refused:
        logger.warning(
            "%d events of the hub %s were not applied: %s",
            len(refused),
            hub,
            ", ".join(f"{one.device_id} ({one.why})" for one in refused[:20]),
        )
        data = {"events": [{"serial": one.serial, "device": one.device_id, "why": one.why} for one in refused[:100]]}
        record(EventKind.FEED_REFUSED, by=author(hub), device_id=hub, reason_code=refused[0].why, data=data)
