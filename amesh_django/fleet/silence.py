"""Silence: when the hubs of this server were heard last, and which of them have been silent for too long (docs/fleet.md §9)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from amesh_django.conf import amesh_settings
from amesh_django.kinds import EventKind
from amesh_django.models import Hub
from amesh_django.trust import SealedList
from amesh_django.trust.hubs import HubRows
from amesh_django.trust.verified import KnownDevice, Snapshot

from .following import follows

#: A message that is further in the future was received with a wrong clock.
MAX_SKEW_SECONDS = 60.0
#: Events by which a device becomes a hub, or the key of one.
_BEGINNINGS = (EventKind.TRUST, EventKind.GRANT, EventKind.APPROVE, EventKind.REINSTATE, EventKind.ROTATE)


class FollowedHub(NamedTuple):
    """A hub that this server follows.

    Attributes:
        public_key: its key, 33 bytes.
        device: the hub in the allow list.
        row: what this server has of it; None if there is no row that amesh wrote.
    """

    public_key: bytes
    device: KnownDevice
    row: Hub | None

    @property
    def heard_at(self) -> float | None:
        """Unix seconds of its newest message; None if it has sent none."""
        moment = self.row.last_contact_at if self.row is not None else None
        return moment.timestamp() if moment is not None else None


class StaleHub(NamedTuple):
    """A hub that has been silent for longer than ``AMESH["HUB_MAX_STALE_SECONDS"]``.

    Attributes:
        device_id: the hub.
        heard: when it was heard last, or became a hub, in words.
    """

    device_id: str
    heard: str


def followed_hubs(sealed: SealedList, known: Snapshot, now: float) -> list[FollowedHub]:
    """Return the hubs of a list, with what this server has of them.

    Args:
        sealed: the allow list.
        known: the list as it is now.
        now: Unix seconds.
    """
    found = follows(known, now)
    rows = HubRows(sealed.using, sealed.all_keys, sealed.keys)
    genuine = {row.device_id: row for row in rows.every() if rows.is_genuine(row)}
    return [FollowedHub(public_key, device, genuine.get(device.device_id)) for public_key, device in found]


def stale_of(sealed: SealedList, hubs: Iterable[FollowedHub], now: float) -> Iterator[StaleHub]:
    """Yield the hubs that have been silent for longer than ``AMESH["HUB_MAX_STALE_SECONDS"]``.

    Args:
        sealed: the allow list.
        hubs: the hubs.
        now: Unix seconds.
    """
    limit = amesh_settings().HUB_MAX_STALE_SECONDS
    for hub in hubs:
        since = _silent_since(sealed, hub, now)
        if since is None or not 0 <= now - since < limit:
            yield StaleHub(hub.device.device_id, _shown(since))


def _silent_since(sealed: SealedList, hub: FollowedHub, now: float) -> float | None:
    """Return the time of its newest message. For one that has sent none: when it became a hub. None if nothing says that."""
    if hub.heard_at is not None and hub.heard_at <= now + MAX_SKEW_SECONDS:
        return hub.heard_at
    found = None
    for event in sealed.events(device_id=hub.device.device_id, kind__in=_BEGINNINGS):
        if event is not None and sealed.is_genuine_event(event):
            found = event.at.timestamp()
    return found


def _shown(moment: float | None) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="seconds") if moment is not None else "no time"
