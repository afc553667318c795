"""What people and programs are shown about the servers of this hub, and about the hubs of this server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from django.db.models import Count
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from amesh_django.conf import amesh_settings
from amesh_django.decisions.hubs import REPLACED, described
from amesh_django.models import Device, Hub, HubEntry, Server
from amesh_django.states import ACTIVE
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.hubs import HubRows, key_name
from amesh_django.trust.verified import KnownDevice
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.keys import decode_public_key

from . import servers
from .following import ENROLL, REVOKE

State = Literal["up_to_date", "waiting", "silent", "failing", "paused", "untrusted", "ahead", "changed", "unknown"]
#: The states in words, the worst last.
STATES: Final[Mapping[State, str | Promise]] = {
    "up_to_date": _("up to date"),
    "waiting": _("waiting"),
    "silent": _("silent"),
    "paused": _("paused"),
    "failing": _("failing"),
    "untrusted": _("not trusted"),
    "unknown": _("not known"),
    "ahead": _("ahead"),
    "changed": _("changed outside Django"),
}
#: What each state means, and what to do about it. Empty if there is nothing to say.
MEANING: Final[Mapping[State, str | Promise]] = {
    "up_to_date": "",
    "waiting": _("Changes are under way."),
    "silent": _(
        "Nothing was sent for longer than 90 seconds. Start the worker and beat of Celery, or amesh_propagate --watch."
    ),
    "paused": _("Changes wait until it is resumed."),
    "failing": _("It is tried again by itself. Nothing is lost."),
    "untrusted": _(
        "This hub does not list it as a target that is trusted, so nothing is sent. Pair it again, or remove it."
    ),
    "unknown": _("The allow list of this hub is rejected, so it is not known what the server lacks."),
    "ahead": _(
        "It has changes that this hub has lost: an older list was restored here. It may not know what was changed since. Find out why, "
        "then run amesh_integrity --reseal."
    ),
    "changed": _(
        "Its row was changed outside Django, so nothing is sent. Find out who did that. Then remove it, and add it again."
    ),
}
#: Seconds without an answer after which something does not run: three heartbeats.
SILENT_SECONDS: Final = 90


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server of this hub, as it is shown.

    Attributes:
        server: its row.
        name: its friendly name; its device ID if this hub does not know it.
        state: one of :data:`STATES`.
        revisions: changes that it has not acknowledged; None if that is not known.
        seconds: age of the oldest of them; None if that is not known.
        refused: the newest events that it refused: ``serial``, ``device``, ``event``, ``why``, ``at``.
        lacks_list: True if it has acknowledged nothing of this list yet, so that the number of changes says little.
    """

    server: Server
    name: str
    state: State
    revisions: int | None
    seconds: float | None
    refused: tuple[Mapping[str, Any], ...]
    lacks_list: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the server for ``--json``."""
        row = self.server
        return {
            "deviceId": row.device_id,
            "friendlyName": self.name,
            "url": row.url,
            "state": self.state,
            "scopeOfEvents": row.scope_of_events,
            "groups": row.groups,
            "acknowledged": row.acked,
            "lag": self.revisions,
            "lagSeconds": self.seconds,
            "lacksList": self.lacks_list,
            "attempts": row.attempts,
            "lastAnswer": row.last_ok_at.isoformat() if row.last_ok_at is not None else None,
            "lastAttempt": row.last_sent_at.isoformat() if row.last_sent_at is not None else None,
            "lastError": row.last_error or None,
            "refused": list(self.refused),
        }


def every(now: dt.datetime | None = None) -> list[ServerView]:
    """Return all servers of this hub as they are shown, those that need attention too.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    return view(servers.every(), now)


def view(rows: Iterable[Server], now: dt.datetime | None = None) -> list[ServerView]:
    """Return servers as they are shown. The number of queries is the same for one server and for many.

    Args:
        rows: their rows.
        now: the time. Defaults to the clock.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    found = list(rows)
    if not found:
        return []
    now = now or timezone.now()
    ids = [row.device_id for row in found]
    names = dict(Device.objects.using(database()).filter(device_id__in=ids).values_list("device_id", "friendly_name"))
    try:
        is_genuine = {row.device_id: servers.is_genuine(row) for row in found}
        head = servers.head()
        trusted = servers.trusted(ids)
        lags = servers.lags(found, head, now)
    except AmeshError:
        return [unknown(row, names.get(row.device_id) or row.device_id) for row in found]
    return [
        ServerView(
            row,
            names.get(row.device_id) or row.device_id,
            _state(row, head, row.device_id in trusted, now),
            lag.revisions,
            lag.seconds,
            refused_events(row),
            row.epoch != head.epoch,
        )
        if is_genuine[row.device_id]
        else unknown(row, names.get(row.device_id) or row.device_id, "changed")
        for row, lag in zip(found, lags, strict=True)
    ]


def unknown(row: Server, name: str, state: State = "unknown") -> ServerView:
    """Return a server as it is shown if it is not known what it lacks."""
    return ServerView(row, name, state, None, None, refused_events(row))


def _state(row: Server, head: servers.Head, is_trusted: bool, now: dt.datetime) -> State:
    if not row.enabled:
        return "paused"
    if not is_trusted:
        return "untrusted"
    if servers.is_ahead(row, head):
        return "ahead"
    if row.attempts or row.last_error:
        return "failing"
    since = max(filter(None, (row.last_ok_at, row.last_sent_at, row.added_at)))
    if (now - since).total_seconds() > SILENT_SECONDS:
        return "silent"
    return "waiting" if servers.is_dirty(row, head) else "up_to_date"


HubState = Literal["heard", "silent", "not_heard", "not_allowed", "changed"]
#: The states of a hub in words.
HUB_STATES: Final[Mapping[HubState, str | Promise]] = {
    "heard": _("heard"),
    "not_heard": _("not heard yet"),
    "silent": _("silent"),
    "not_allowed": _("no permission"),
    "changed": _("changed outside Django"),
}


@dataclass(frozen=True, slots=True)
class HubView:
    """A hub that this server follows, or has followed.

    Attributes:
        device_id: the hub.
        name: its friendly name; its device ID if this server does not know it.
        state: one of :data:`HUB_STATES`.
        permissions: those of ``revoke`` and ``enroll`` that it has here.
        row: what this server knows from it; None if it was never heard.
        seconds: seconds since it was heard last; None if it was never heard.
        words: number of keys about which it has said anything.
    """

    device_id: str
    name: str
    state: HubState
    permissions: tuple[str, ...]
    row: Hub | None
    seconds: float | None
    words: int

    def to_json(self) -> dict[str, Any]:
        """Return the hub for ``--json``."""
        row = self.row
        heard = row.last_contact_at if row is not None else None
        return {
            "deviceId": self.device_id,
            "friendlyName": self.name,
            "state": self.state,
            "permissions": list(self.permissions),
            "url": row.url or None if row is not None else None,
            "applied": row.applied if row is not None else 0,
            "head": row.head if row is not None else 0,
            "lastContact": heard.isoformat() if heard is not None else None,
            "words": self.words,
        }


def hubs(now: dt.datetime | None = None) -> list[HubView]:
    """Return the hubs of this server: those with a permission, and those that were heard before they lost it.

    Args:
        now: the time. Defaults to the clock.

    Raises:
        AllowListIntegrityFailure: the allow list is rejected.
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    now = now or timezone.now()
    known = {
        device.device_id: device
        for device in list(current_list().snapshot().by_key.values())
        if device.role == CONTROLLER
        and device.state(now.timestamp()) == ACTIVE
        and device.standing.revoked_from is None  # a key that was replaced is known by the new one
    }
    rows = {row.device_id: row for row in hub_rows().every()}
    allowed = {name: allowed_of(device) for name, device in known.items() if allowed_of(device)}
    counts = dict(
        HubEntry.objects.using(database()).values_list("hub").annotate(count=Count("id")).values_list("hub", "count")
    )
    found = []
    for device_id in sorted({*rows, *allowed}):
        row, permissions = rows.get(device_id), allowed.get(device_id, ())
        heard = row.last_contact_at if row is not None else None
        seconds = max(0.0, (now - heard).total_seconds()) if heard is not None else None
        name = known[device_id].friendly_name if device_id in known else device_id
        found.append(
            HubView(
                device_id,
                name,
                _hub_state(row, permissions, seconds),
                permissions,
                row,
                seconds,
                counts.get(device_id, 0),
            )
        )
    return found


def hub_rows() -> HubRows:
    """Return the rows of hubs in the database of the allow list."""
    sealed = current_list()
    return HubRows(sealed.using, sealed.all_keys, sealed.log_keys())


def allowed_of(device: KnownDevice) -> tuple[str, ...]:
    """Return those permissions of a hub that a device of the allow list has."""
    permissions = json.loads(device.permissions_json)
    return tuple(name for name in (REVOKE, ENROLL) if permissions.get(name) is True)


def _hub_state(row: Hub | None, permissions: tuple[str, ...], seconds: float | None) -> HubState:
    if row is not None and not hub_rows().is_genuine(row):
        return "changed"
    if not permissions:
        return "not_allowed"
    if seconds is None:
        return "not_heard"
    return "silent" if seconds > amesh_settings().HUB_FRESH_SECONDS else "heard"


def refused_events(row: Server) -> tuple[Mapping[str, Any], ...]:
    """Return the newest events that a server refused. What was written outside Django and is no such list is left out."""
    try:
        found = json.loads(row.refused_json)
    except (ValueError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def acknowledged(serial: int) -> tuple[int, int]:
    """Return how many servers of this hub have acknowledged a change, and how many there are that are told of it.

    Args:
        serial: revision of the list with the change.
    """
    rows, head = [row for row in servers.every() if row.enabled], servers.head()
    return sum(_has_confirmed(row, head, serial) for row in rows), len(rows)


def unconfirmed(serial: int) -> list[Server]:
    """Return the servers of this hub that have not acknowledged a change, also those that are paused.

    Args:
        serial: as for :func:`acknowledged`.
    """
    rows, head = servers.every(), servers.head()
    return [row for row in rows if not _has_confirmed(row, head, serial)]


def _has_confirmed(row: Server, head: servers.Head, serial: int) -> bool:
    return row.epoch == head.epoch and row.acked >= serial and not servers.is_ahead(row, head)


def words_about(public_key: str) -> list[HubEntry]:
    """Return what hubs have said about a key. A row that was changed outside Django is left out, and logged.

    Args:
        public_key: in base64, as the model holds it.
    """
    try:
        return hub_rows().about([key_name(decode_public_key(public_key))])
    except AmeshError:
        return []


def described_word(entry: HubEntry, moment: str) -> str:
    """Return what a hub has said about a key, in one sentence for people.

    Args:
        entry: the word.
        moment: its time, in words.
    """
    if entry.event in ("revoke", "suspend"):
        said = described(entry, moment)
        if entry.event == "suspend" or not entry.suspended:
            return said
        return str(_("%(text)s It has also suspended it.") % {"text": said})
    text = {
        "trust": _("The hub %(hub)s let it in %(moment)s."),
        REPLACED: _("The hub %(hub)s replaced the key %(moment)s."),
        "lift": _("The hub %(hub)s lifted its suspension %(moment)s."),
    }.get(entry.event, _("The hub %(hub)s undid its revocation %(moment)s."))
    return str(text) % {"hub": clean_line(entry.hub), "moment": moment}
