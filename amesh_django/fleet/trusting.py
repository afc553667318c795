"""What an event ``trust`` of a hub means here: it adds devices, and changes those that it has added itself (docs/fleet.md §5)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from amesh_django.conf import amesh_settings
from amesh_django.decisions import REINSTATED, on_entry
from amesh_django.decisions.hubs import NOT_SUSPENDED
from amesh_django.grantable import check_grantable
from amesh_django.kinds import EventKind
from amesh_django.models import Device, HubEntry
from amesh_django.states import ROTATED
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import is_revoked, now, row_values
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.fleet.events import FeedEvent, Trusted
from authmesh.protocol.keys import device_id, encode_public_key
from authmesh.protocol.scopes import SCOPES, covers, is_scope

from .plans import NOTHING, Plan
from .rights import Rights, rights


def plan(
    event: FeedEvent,
    row: Device | None,
    entry: HubEntry | None,
    older: Device | None,
    older_entry: HubEntry | None,
    *,
    pending: Change,
    is_mine: Callable[[str], bool],
    may_enroll: bool,
    is_denied: bool,
    suspension: Mapping[str, Any],
    limit: int,
) -> Plan:
    """Return what an event ``trust`` changes.

    Args:
        event: the event.
        row: the row with this key, or None.
        entry: what the hub said about the key before, or None.
        older: the row of the key that a new one replaces, or None.
        older_entry: what the hub said about that one, or None.
        pending: the open change.
        is_mine: returns True if an author is this hub.
        may_enroll: True if the hub may add devices.
        is_denied: True if another hub has revoked the key.
        suspension: columns of the suspension, if the device comes in.
        limit: maximum number of controllers.
    """
    found = event.trusted
    if found is None:
        return NOTHING
    has_added = entry is not None and entry.added
    why = _refusal(found, row, is_mine, may_enroll=may_enroll, is_denied=is_denied)
    if not why and row is None and older is not None:
        why = _refusal_of_new_key(device_id(found.public_key), older, older_entry, is_mine)
    if why:
        return Plan(why=why, is_noted=False)
    if row is not None and not is_revoked(row_values(row)) and (not has_added or row.role != CONTROLLER):
        return Plan(why="known_here")
    if (row is None or is_revoked(row_values(row))) and pending.controllers >= limit:
        return Plan(why="max_controllers", is_noted=False)
    if row is None:
        new, given = _new(found, suspension, older, older_entry)
        return Plan(new=new, why=_waits(new.pending_since), word={"added": True, **NOT_SUSPENDED, **given.word})
    given = rights(found, row, entry, added_at=row.added_at) if has_added else Rights({}, {})
    if is_revoked(row_values(row)):
        columns = dict(REINSTATED)
        if has_added:
            columns |= {**given.columns, **suspension, **_entering(row.pending_since)}
        why = _waits(columns.get("pending_since"))
        word = {**given.word, **(NOT_SUSPENDED if has_added else {})}
        return Plan([(row, EventKind.TRUST, columns)], why=why, word=word)
    new_columns = {name: value for name, value in given.columns.items() if getattr(row, name) != value}
    return Plan([(row, EventKind.TRUST, new_columns)] if new_columns else (), word=given.word)


def with_rights(undone: Plan, found: Trusted, row: Device, entry: HubEntry) -> Plan:
    """Return a plan that ends a suspension or revocation of a device that the hub has added, and gives it the rights that it has now.

    Args:
        undone: the plan without the rights.
        found: what the device may do at the hub.
        row: its row here.
        entry: what the hub said about the key before.
    """
    if not may_grant(found):
        return Plan(why="may_not_grant", is_noted=False)
    given = rights(found, row, entry, added_at=row.added_at)
    if is_revoked(row_values(row)) and all(one.device_id != row.device_id for one, _kind, _columns in undone.updates):
        return undone  # it does not come back
    updates = [
        (one, kind, {**columns, **(given.columns if one.device_id == row.device_id else {})})
        for one, kind, columns in undone.updates
    ]
    new = {name: value for name, value in given.columns.items() if getattr(row, name) != value}
    if new and all(one.device_id != row.device_id for one, _kind, _columns in updates):
        updates.append((row, EventKind.TRUST, new))
    return replace(undone, updates=updates, word={**undone.word, **given.word})


def _refusal(
    found: Trusted, row: Device | None, is_mine: Callable[[str], bool], *, may_enroll: bool, is_denied: bool
) -> str:
    if not may_enroll:
        return "permission_missing"
    if not may_grant(found):
        return "may_not_grant"
    if is_denied or (row is not None and row.denied_at is not None):
        return "key_denied"
    if row is not None and is_revoked(row_values(row)) and not is_mine(row.revoked_by):
        return "revoked_here"
    return ""


def _refusal_of_new_key(name: str, older: Device, older_entry: HubEntry | None, is_mine: Callable[[str], bool]) -> str:
    """Return why a key does not come in that replaces another one at the hub: the device is denied or revoked here, or is not the hub's."""
    if older.denied_at is not None:
        return "key_denied"
    is_replaced = older.revoke_reason == ROTATED and older.revoked_by == name
    if is_revoked(row_values(older)) and not is_replaced and not is_mine(older.revoked_by):
        return "revoked_here"
    return "" if older_entry is not None and older_entry.added else "known_here"


def may_grant(found: Trusted) -> bool:
    """Return True if a hub may give a device what an event says, by ``HUB_MAY_GRANT``, and this project knows all of it.

    The settings reject the permissions that no hub grants.
    """
    allowed = _granted_by_hubs()
    if not all(name in allowed and name != SCOPES for name in found.permissions):
        return False
    if not all(_is_allowed(scope, allowed) for scope in found.scopes):
        return False
    try:
        check_grantable("permission", found.permissions)
        check_grantable("scope", found.scopes)
    except InvalidInput:
        return False
    return True


def _granted_by_hubs() -> frozenset[str]:
    return frozenset(amesh_settings().HUB_MAY_GRANT)


def _is_allowed(scope: str, allowed: Collection[str]) -> bool:
    """Return True if a scope is among names, or one of them that ends with ``*`` covers it."""
    if scope in allowed:
        return True
    wide = frozenset(name for name in allowed if name.endswith(":*"))
    # What covers every name below `a:b` covers `a:b:*`.
    return (
        covers(wide, f"{scope[:-1]}any" if scope.endswith(":*") else scope) if is_scope(scope.rstrip("*:")) else False
    )


def _new(
    found: Trusted, suspension: Mapping[str, Any], older: Device | None, older_entry: HubEntry | None
) -> tuple[Device, Rights]:
    moment = now()
    given = rights(found, older, older_entry, added_at=moment)
    new = Device(
        device_id=device_id(found.public_key),
        public_key=encode_public_key(found.public_key),
        role=CONTROLLER,
        added_at=moment,
        added_by=Device.AddedBy.MANUAL,
        note=older.note if older is not None else "",
        **given.columns,
        **suspension,
        **_entering(older.pending_since if older is not None else None),
    )
    return new, given


def _entering(pending_since: dt.datetime | None) -> dict[str, Any]:
    """Return the column that says whether a device that enters waits for approval. One that has waited before has waited since."""
    since = pending_since or on_entry(CONTROLLER).get("pending_since")
    return {"pending_since": since} if since is not None else {}


def _waits(pending_since: dt.datetime | None) -> str:
    return "pending" if pending_since is not None else ""
