"""What people and programs are shown about the servers of this hub, and about the hubs of this server."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device, Server
from amesh_django.trust.database import database
from authmesh.protocol.errors import AmeshError

from . import servers

State = Literal["up_to_date", "waiting", "silent", "failing", "paused", "untrusted", "changed", "unknown"]
#: The states in words, the worst last.
STATES: Final[Mapping[State, str | Promise]] = {
    "up_to_date": _("up to date"),
    "waiting": _("waiting"),
    "silent": _("silent"),
    "paused": _("paused"),
    "failing": _("failing"),
    "untrusted": _("not trusted"),
    "unknown": _("not known"),
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
    """

    server: Server
    name: str
    state: State
    revisions: int | None
    seconds: float | None
    refused: tuple[Mapping[str, Any], ...]

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
    """Return servers as they are shown.

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
    return [_view(row, names.get(row.device_id) or row.device_id, now) for row in found]


def _view(row: Server, name: str, now: dt.datetime) -> ServerView:
    refused = refused_events(row)
    if not servers.is_genuine(row):
        return ServerView(row, name, "changed", None, None, refused)
    try:
        lag = servers.lag(row)
        is_trusted = servers.public_key_of(row.device_id) is not None
    except AmeshError:
        return ServerView(row, name, "unknown", None, None, refused)
    return ServerView(row, name, _state(row, lag.revisions > 0, is_trusted, now), lag.revisions, lag.seconds, refused)


def _state(row: Server, is_dirty: bool, is_trusted: bool, now: dt.datetime) -> State:
    if not row.enabled:
        return "paused"
    if not is_trusted:
        return "untrusted"
    if row.attempts or row.last_error:
        return "failing"
    since = max(filter(None, (row.last_ok_at, row.last_sent_at, row.added_at)))
    if (now - since).total_seconds() > SILENT_SECONDS:
        return "silent"
    return "waiting" if is_dirty else "up_to_date"


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
    rows = [row for row in servers.every() if row.enabled]
    epoch = servers.head().epoch
    return sum(row.epoch == epoch and row.acked >= serial for row in rows), len(rows)
