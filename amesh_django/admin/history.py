"""What the journal says about a device: each change with what it changed, and whether amesh wrote the line."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from amesh_django.models import AllowListChange, Device
from amesh_django.trust.database import database
from amesh_django.trust.keys import SealKeys, seal_keys
from amesh_django.trust.sealing import COLUMNS, journal_line_is_genuine
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AmeshError

from . import shown

#: How many lines a page shows.
MOST = 50
# Never change (id, device id, key), or say nothing (revision).
_SILENT = {"id", "device_id", "public_key", "revision"}
# What the first line of a device is told by: the rest stands on the page.
_FIRST = {"friendly_name", "role", "permissions_json"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One column that a change set."""

    label: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the journal, as it is shown.

    Attributes:
        genuine: whether its MAC is right; None where the key can't be had.
    """

    at: str
    by: str
    action: str
    genuine: bool | None
    differences: list[Difference]


def keys_or_none() -> SealKeys | None:
    """The keys that the MACs of the journal are checked with, or None where they can't be had."""
    try:
        return seal_keys()
    except (AmeshError, ImproperlyConfigured):
        return None


def is_genuine(keys: SealKeys | None, line: AllowListChange) -> bool | None:
    """True if amesh wrote the line, False if not, None if that can't be told."""
    if keys is None:
        return None
    return journal_line_is_genuine(keys, line)


def history(device_id: str) -> tuple[list[Line], bool]:
    """The newest lines about a device, newest first; and whether there are older ones.

    Args:
        device_id: of the device, trusted or not.
    """
    keys = keys_or_none()
    lines = AllowListChange.objects.using(database()).filter(device_id=device_id).order_by("-id")
    newest_first = [(line, is_genuine(keys, line)) for line in lines[: MOST + 1]]
    rows = [_row(line) if genuine is not False else None for line, genuine in newest_first]
    users = _users(row for row in rows if row)
    found = []
    for number, (line, genuine) in enumerate(newest_first[:MOST]):
        row = rows[number]
        older = next((row for row in rows[number + 1 :] if row is not None), None)
        found.append(
            Line(
                at=shown.full_time(line.at),
                by=clean_line(line.by) or shown.NOTHING,
                action=shown.choice(line.get_action_display()),
                genuine=genuine,
                differences=_differences(older, row, users) if row is not None else [],
            )
        )
    return found, len(newest_first) > MOST


def _row(line: AllowListChange) -> dict[str, str] | None:
    try:
        row = json.loads(line.row)
    except ValueError:
        return None
    return {str(name): str(value) for name, value in row.items()} if isinstance(row, dict) else None


def _users(rows: Iterable[dict[str, str]]) -> dict[str, str]:
    """The names of the users that the rows mention by primary key."""
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
        if column in _SILENT or new == old or (before is None and column not in _FIRST):
            continue
        label = getattr(Device._meta.get_field(column.removesuffix("_id")), "verbose_name", column)
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
    if column.endswith("_at"):
        with contextlib.suppress(ValueError):
            return shown.full_time(dt.datetime.fromisoformat(text))
    return clean_line(text)


def permissions(text: str) -> str:
    """Permissions in words: the names of those that are granted."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return clean_line(text)
    granted = [clean_line(name if value is True else f"{name}: {value}") for name, value in found.items() if value]
    return ", ".join(granted) or _("none")
