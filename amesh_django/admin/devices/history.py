"""The changes of one device in the audit log: each with its differences, verified by its MAC."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from amesh_django.audit.reading import readable
from amesh_django.models import AuditEvent, Device
from amesh_django.models.names import names_in
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import UNREADABLE, each_row
from amesh_django.trust.database import database
from amesh_django.trust.sealing import COLUMNS
from authmesh.protocol.display import clean, clean_line

from .. import shown
from ..genuine import is_genuine, kind_of, sealed_or_none

#: Maximum number of changes that a page shows.
MAX_LINES = 50
# Columns that never change (id, device ID, key) or tell a reader nothing (revision).
_HIDDEN = {"id", "device_id", "public_key", "revision"}
# Columns that the first event of a device shows. The page of the device shows the rest.
_FIRST = {"friendly_name", "role", "permissions_json"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One column, before and after a change."""

    label: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a device, ready to be shown.

    Attributes:
        at: time of the change.
        by: author of the change.
        action: what was done.
        genuine: True if amesh wrote the event, False if its MAC is wrong, None if the key is not available.
        differences: what the change changed; empty if the event is forged.
    """

    at: str
    by: str
    action: str
    genuine: bool | None
    differences: list[Difference]


def history(device_id: str) -> tuple[list[Change], bool]:
    """Return the newest changes of a device, newest first, and True if there are older ones.

    Args:
        device_id: device ID of a device in any state.
    """
    sealed = sealed_or_none()
    about = Q(device_id=device_id, revision__isnull=False) | Q(
        kind__in=(AuditEvent.Kind.RESEAL, AuditEvent.Kind.ARCHIVE), data__contains=device_id
    )
    events = each_row(AuditEvent.objects.using(database()).filter(about).order_by("-id"), MAX_LINES + 1)
    newest_first = [(event, is_genuine(sealed, event)) for event in (readable(pk, event) for pk, event in events)]
    rows = [row_of(event, device_id) if genuine is not False else None for event, genuine in newest_first]
    users = _users(row for row in rows if row)
    found = []
    for number, (event, genuine) in enumerate(newest_first[:MAX_LINES]):
        row = rows[number]
        older = next((row for row in rows[number + 1 :] if row is not None), None)
        found.append(
            Change(
                at=shown.full_time(event.at),
                by=clean_line(event.actor) or shown.NOTHING,
                action=kind_of(event),
                genuine=genuine,
                differences=_differences(older, row, users) if row is not None else [],
            )
        )
    return found, len(newest_first) > MAX_LINES


def row_of(event: AuditEvent, device_id: str) -> dict[str, str] | None:
    """Return the row of a device as an event has it, column → text, or None if the event is damaged or has no row."""
    data = data_of(event)
    rows = data.get("rows")
    row = data.get("row") if event.device_id else rows.get(device_id) if isinstance(rows, dict) else None
    return {str(name): str(value) for name, value in row.items()} if isinstance(row, dict) else None


def _users(rows: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return primary key → name of the users in the rows."""
    names = {row.get("user_id", "") for row in rows} - {""}
    model = get_user_model()
    keys: list[Any] = []
    for name in names:
        try:
            keys.append(model._meta.pk.to_python(name))
        except ValidationError:
            continue
    return {str(user.pk): user.get_username() for user in model._default_manager.filter(pk__in=keys)} if keys else {}


def _differences(before: dict[str, str] | None, after: dict[str, str], users: dict[str, str]) -> list[Difference]:
    found = []
    for column in COLUMNS:
        new, old = after.get(column, ""), before.get(column, "") if before is not None else ""
        if column in _HIDDEN or new == old or (before is None and column not in _FIRST):
            continue
        label = getattr(Device._meta.get_field(column), "verbose_name", column)
        found.append(Difference(capfirst(label), _value(column, old, users), _value(column, new, users)))
    return found


def _value(column: str, text: str, users: dict[str, str]) -> str:
    if not text:
        return shown.NOTHING
    if column == "friendly_name":
        return clean(text)
    if column == "user_id":
        return clean_line(users.get(text, _("user %(key)s") % {"key": text}))
    if column == "permissions_json":
        return permissions(text)
    if column == "groups_json":
        return clean_line(", ".join(names_in(text)) or text)
    if column.endswith(("_at", "_until", "_since")):
        with contextlib.suppress(ValueError):
            return shown.full_time(dt.datetime.fromisoformat(text))
    labels = dict(getattr(Device._meta.get_field(column), "flatchoices", ()))
    return shown.choice(labels.get(text, text))


def permissions(text: str) -> str:
    """Return the names of the permissions that are granted, as one text.

    Args:
        text: the column ``permissions_json``.
    """
    try:
        found = json.loads(text)
        granted = [clean_line(name if value is True else f"{name}: {value}") for name, value in found.items() if value]
    except UNREADABLE:
        return clean_line(str(text))
    return ", ".join(granted) or _("none")
