"""Revoking a device with all its keys."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.models import AuditEvent, Device
from amesh_django.states import ROTATED
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import actor, is_revoked, now, row_values, storable
from authmesh.device.allow_list import not_found
from authmesh.protocol.errors import DeviceNotFound, Run

from .hubs import is_author
from .rows import WrongState, any_row

#: Columns of a device whose revocation is undone.
REINSTATED: dict[str, Any] = {
    "revoked_at": None,
    "revoked_by": "",
    "revoke_reason": "",
    "replaced_until": None,
    "replaced_by": "",
    "user_id": None,
}


def revoke_keys(pending: Change, device_id: str, reason: str, by: str) -> tuple[dict[str, Device], list[str]]:
    """Revoke a device, the keys that it has replaced, and those that have replaced it: a copy of one key may have made the next.

    Args:
        pending: the open change.
        device_id: ``am_…``
        reason: stored with each revocation.
        by: the person.

    Returns:
        all rows that were revoked, by device ID, and the device IDs of the keys that had replaced this one.

    Raises:
        DeviceNotFound: the list does not have the device, or a person has revoked it.
    """
    moment = now()
    row = any_row(pending, device_id)
    later = [one for one in successors(pending, row) if not is_revoked(row_values(one))]
    if is_revoked(row_values(row)) and later:
        raise _was_replaced(row, later[-1])
    found = {one.device_id: one for one in keys_of_device(pending, row) or _of_hubs(pending, row)}
    if not found:
        raise not_found(device_id)
    for one in found.values():
        columns = {"revoked_at": one.revoked_at if is_revoked(row_values(one)) else moment, "revoked_by": actor(by)}
        pending.update(one, AuditEvent.Kind.REVOKE, **in_overlap(one), **columns, revoke_reason=storable(reason))
    return found, [one.device_id for one in later]


def in_overlap(row: Device) -> dict[str, Any]:
    """Return the columns that keep what a revocation overwrites in the row of a key that was replaced and is still valid: its end, and the
    key that has replaced it. It must not outlive that, nor come back alone, and revoking it must reach the other one."""
    if row.revoke_reason != ROTATED or is_revoked(row_values(row)):
        return {}
    return {"replaced_until": row.revoked_at, "replaced_by": row.revoked_by}


def overlap_again(row: Device, moment: dt.datetime) -> dict[str, Any]:
    """Return the columns of a key that was revoked in its overlap, as they were before; none if that has ended, or there was none."""
    if row.replaced_until is None or row.replaced_until <= moment:
        return {}
    return {"revoked_at": row.replaced_until, "revoked_by": row.replaced_by, "revoke_reason": ROTATED}


def _of_hubs(pending: Change, row: Device) -> list[Device]:
    """Return the keys of a device that a hub has revoked: a person who revokes it, too, keeps the hub from undoing that."""
    keys = {one.device_id: one for one in (row, *successors(pending, row), *predecessors(pending, row))}
    return [one for one in keys.values() if is_revoked(row_values(one)) and is_author(one.revoked_by)]


def keys_of_device(pending: Change, row: Device) -> list[Device]:
    """Return the rows of a device that are not revoked: of a key, those that have replaced it, and those that they have replaced."""
    valid = [one for one in (row, *successors(pending, row)) if not is_revoked(row_values(one))]
    found = {one.device_id: one for key in valid for one in (key, *pending.replaced_by(key.device_id))}
    return list(found.values())


def successors(pending: Change, row: Device) -> list[Device]:
    """Return the keys that have replaced a key, one after the other, also if a hub has revoked them."""
    found: dict[str, Device] = {}
    while (name := row.replaced_by or (row.revoked_by if row.revoke_reason == ROTATED else "")) and name not in found:
        newer = pending.find(device_id=name)
        if newer is None:
            break
        found[newer.device_id] = row = newer
    return list(found.values())


def predecessors(pending: Change, row: Device) -> list[Device]:
    """Return the keys that a key has replaced, if a hub has revoked them with it."""
    found: dict[str, Device] = {}
    names = {row.device_id}
    while names:
        more = [one for one in pending.select(replaced_by__in=names) if one.device_id not in found]
        found |= {one.device_id: one for one in more}
        names = {one.device_id for one in more}
    return list(found.values())


def check_not_replaced(pending: Change, row: Device) -> None:
    """Check that the row of a key may be removed.

    Raises:
        WrongState: it was replaced by one that is trusted. Without its row, revoking the old key would not reach the new one.
    """
    trusted = [one for one in successors(pending, row) if not is_revoked(row_values(one))]
    if trusted:
        names = {"device": row.device_id, "newer": trusted[-1].device_id}
        raise WrongState(
            _("The key of %(device)s was replaced by %(newer)s, which is trusted. Nothing was changed.") % names,
            hint=(
                _(
                    "Its row stays as long as that, so that a revocation of the old key also revokes the new one. If the device is gone, run "
                ),
                Run("revoke", trusted[-1].device_id),
                _(", then purge both."),
            ),
        )


def _was_replaced(row: Device, newer: Device) -> DeviceNotFound:
    return DeviceNotFound(
        _("The key of %(device)s was replaced by %(newer)s, which is trusted. Nothing was changed.")
        % {"device": row.device_id, "newer": newer.device_id},
        hint=(_("To revoke it, run "), Run("revoke", newer.device_id), "."),
    )
