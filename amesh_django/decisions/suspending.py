"""The suspensions of a device: one by a person of this server, and one by each hub. The device is accepted when all of them have ended.

The row has the one that lasts longest, so that its state follows from the row alone. If that is the one of a hub, the row keeps that of
the person beside it. The words of the hubs have theirs (docs/fleet.md §6).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from amesh_django.kinds import EventKind
from amesh_django.models import Device, HubEntry
from amesh_django.trust.change import Change
from amesh_django.trust.hubs import key_name
from amesh_django.trust.sealing import actor, now
from authmesh.protocol.keys import decode_public_key

from .hubs import author, follows_hubs, is_author, suspends

#: Columns of a device that is not suspended.
LIFTED: dict[str, Any] = {
    "suspended_at": None,
    "suspended_until": None,
    "suspended_by": "",
    "suspend_reason": "",
    "kept_until": None,
    "kept_by": "",
    "kept_reason": "",
}


class Suspension(NamedTuple):
    """A suspension.

    Attributes:
        until: its end; None for none.
        by: its author, as the row has it.
        reason: in words.
    """

    until: dt.datetime | None
    by: str
    reason: str

    def is_on(self, moment: dt.datetime) -> bool:
        """Return True if it has not ended."""
        return self.until is None or self.until > moment

    def outlasts(self, other: Suspension) -> bool:
        """Return True if it ends later than another one."""
        return other.until is not None and (self.until is None or self.until > other.until)


def by_person(row: Device, moment: dt.datetime) -> Suspension | None:
    """Return the suspension of a device by a person of this server; None if there is none, or it has ended."""
    if row.kept_until is not None:
        found = Suspension(row.kept_until, row.kept_by, row.kept_reason)
    elif row.suspended_at is not None and not is_author(row.suspended_by):
        found = _shown(row)
    else:
        return None
    return found if found.is_on(moment) else None


def by_hubs(row: Device, words: Iterable[HubEntry], moment: dt.datetime) -> dict[str, Suspension]:
    """Return the suspensions of a device by hubs that have not ended: author → suspension.

    Args:
        row: the device. The suspension that it has counts also if the word of the hub was changed outside Django.
        words: what hubs have said about its keys.
        moment: the time.
    """
    found: dict[str, Suspension] = {}
    if row.suspended_at is not None and is_author(row.suspended_by) and _shown(row).is_on(moment):
        found[row.suspended_by] = _shown(row)
    for word in words:
        name = actor(author(word.hub))
        new = Suspension(word.suspended_until, name, word.reason if word.event == "suspend" else "")
        if suspends(word, moment) and (name not in found or new.outlasts(found[name])):
            found[name] = new
    return found


def columns(row: Device, own: Suspension | None, others: Iterable[Suspension], moment: dt.datetime) -> dict[str, Any]:
    """Return the columns of a device with these suspensions, none of which has ended.

    Args:
        row: the device.
        own: the one by a person of this server.
        others: those by hubs.
        moment: the time.
    """
    longest = own
    for one in others:
        longest = one if longest is None or one.outlasts(longest) else longest
    if longest is None:
        return LIFTED
    kept = own if own is not None and longest is not own else None
    is_on = row.suspended_at is not None and _shown(row).is_on(moment)
    return {
        "suspended_at": row.suspended_at if is_on else moment,
        "suspended_until": longest.until,
        "suspended_by": longest.by,
        "suspend_reason": longest.reason,
        "kept_until": kept.until if kept is not None else None,
        "kept_by": kept.by if kept is not None else "",
        "kept_reason": kept.reason if kept is not None else "",
    }


def suspend_beforehand(pending: Change, rows: Sequence[Device]) -> None:
    """Suspend devices that come in with no person who decides, if hubs have suspended their keys before.

    Args:
        pending: the open change.
        rows: the devices, not inserted yet.
    """
    if not rows or not follows_hubs(pending):
        return
    words: dict[str, list[HubEntry]] = {}
    keys = [key_name(decode_public_key(row.public_key)) for row in rows]
    for word in pending.hubs.about(keys):
        words.setdefault(word.key, []).append(word)
    moment = now()
    for key, row in zip(keys, rows, strict=True):
        found = by_hubs(row, words.get(key, ()), moment).values()
        for name, value in columns(row, by_person(row, moment), found, moment).items() if found else ():
            setattr(row, name, value)


def kind_of(new: Mapping[str, Any]) -> str:
    """Return what the audit log calls a change to these columns: another suspension may hold."""
    return EventKind.LIFT if new["suspended_at"] is None else EventKind.SUSPEND


def _shown(row: Device) -> Suspension:
    return Suspension(row.suspended_until, row.suspended_by, row.suspend_reason)
