"""The parts in which a message is applied, each a change of its own.

A message has one part, unless it has a signed list, or a revision with very many events: a hub does not divide one. What is divided here may end
after any part. The hub then sends all of it again, and what was applied is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from amesh_django.states import ROTATED
from amesh_django.trust import SealedList
from amesh_django.trust.hubs import HubRows
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.fleet.events import FeedEvent, device_id_of
from authmesh.protocol.fleet.feed import MAX_EVENTS, FeedMessage

from . import signed_list
from .applying import is_old
from .following import HubDevice, newest_id


class Part(NamedTuple):
    """Events that are applied in one change.

    Attributes:
        events: the events.
        is_list: True if they are from the signed list.
        is_last: True if the whole message is applied with them.
    """

    events: Sequence[FeedEvent]
    is_list: bool
    is_last: bool


def parts_of(
    sealed: SealedList, message: FeedMessage, listed: signed_list.SignedList | None, hub: HubDevice
) -> list[Part]:
    """Return the parts of a message: first what this server lacks of the signed list, then the events.

    Args:
        sealed: the allow list of this server.
        message: the message.
        listed: its signed list, verified; None if it has none.
        hub: the hub.
    """
    of_list = _newest([_as_event(one) for one in listed.revoked] if listed is not None else [])
    events = _newest(message.events)
    if len(events) > MAX_EVENTS:
        events = _lacking(sealed, hub, message.epoch, events)
    parts = [Part(part, is_list=True, is_last=False) for part in _cut(_lacking(sealed, hub, message.epoch, of_list))]
    parts += [Part(part, is_list=False, is_last=False) for part in _cut(events) or [()]]
    return [*parts[:-1], parts[-1]._replace(is_last=True)]


def _newest(events: Sequence[FeedEvent]) -> list[FeedEvent]:
    """Return events without those that another of their revision is about: the later one says all."""
    return list({(event.serial, event.key): event for event in events}.values())


def _cut(events: Sequence[FeedEvent]) -> list[Sequence[FeedEvent]]:
    return [events[start : start + MAX_EVENTS] for start in range(0, len(events), MAX_EVENTS)]


def _lacking(sealed: SealedList, hub: HubDevice, epoch: str, events: Sequence[FeedEvent]) -> list[FeedEvent]:
    """Return the events that are not applied yet. A hub that got no answer in time sends all again, and every attempt must get further."""
    rows = HubRows(sealed.using, sealed.all_keys, sealed.log_keys())
    hub_id, found = newest_id(sealed.snapshot(), hub.device_id), list[FeedEvent]()
    for part in _cut(events):
        words = rows.about(b64url_encode(event.key) for event in part)
        known = {word.key: word for word in words if word.hub == hub_id}
        for event in part:
            word = known.get(b64url_encode(event.key))
            if word is None or not is_old(word, event, epoch):
                found.append(event)
    return found


def _as_event(one: signed_list.Revoked) -> FeedEvent:
    event = FeedEvent(one.serial, "revoke", device_id_of(one.key), one.key, one.at)
    return replace(event, reason=ROTATED, effective_at=one.at, successor=one.next) if one.next else event
