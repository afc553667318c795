"""Adding a device by hand, with the key that it has exported: it enters the list with all that it gets, in one sealed change."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.decisions import GroupNotFound, WrongState, hubs, on_entry, suspend_beforehand
from amesh_django.grantable import check_grantable
from amesh_django.models import Device
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from amesh_django.trust.groups import names_text
from amesh_django.trust.owner import controller_limit
from amesh_django.trust.sealing import now, storable
from authmesh.device.allow_list import limit_reached
from authmesh.device.grants import Grant, granted
from authmesh.protocol.allow_list import CONTROLLER, Role
from authmesh.protocol.display import clean
from authmesh.protocol.key_line import KeyLine
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key
from authmesh.protocol.seal import canonical_json


@dataclass(frozen=True, slots=True)
class Given:
    """What a device gets that is added by hand.

    Attributes:
        role: its role. A target gets nothing else.
        permissions, scopes, groups: what it may do.
        user_id: primary key of the Django user as whom it acts.
        days: days after which its key expires.
        approved: True if a person has approved it.
    """

    role: Role = CONTROLLER
    permissions: Sequence[str] = ()
    scopes: Sequence[str] = ()
    groups: Sequence[str] = ()
    user_id: Any = None
    days: int | None = None
    approved: bool = False


def add(line: KeyLine, given: Given, *, by: str) -> Device:
    """Trust a device that is not in the list, and return its row.

    A device that is there already is not changed, whatever its state: each change of it is a decision of its own.

    Args:
        line: the key and the name that the device has exported.
        given: what the device gets.
        by: the person.

    Raises:
        WrongState: the key is in the list already, also if it was revoked or denied.
        KeyRevokedByHub: a hub has revoked the key.
        GroupNotFound: there is no group of that name any more.
        ControllerLimitReached: the list has as many controllers as it may have.
        AllowListError: the list does not match its seal, or is busy.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    check_grantable("permission", given.permissions)
    check_grantable("scope", given.scopes)
    name, limit = device_id(line.public_key), controller_limit()

    def work(pending: Change) -> Device:
        known = pending.find(public_key=encode_public_key(line.public_key))
        if known is not None and decode_public_key(known.public_key) == line.public_key:
            raise WrongState(
                _("%(device)s is in the allow list already; nothing was changed.") % {"device": name},
                hint=_("Open its page to see what can be done."),
            )
        hubs.refuse_revoked(pending, line.public_key)
        missing = sorted(set(given.groups) - set(pending.groups()))
        if missing:
            raise GroupNotFound(_("There is no group %(name)s; nothing was changed.") % {"name": repr(missing[0])})
        row = _row(line, given)
        suspend_beforehand(pending, [row])
        pending.insert([row])
        if row.role == CONTROLLER and pending.controllers > limit:
            raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')
        return row

    return current_list().change(by, work)


def _row(line: KeyLine, given: Given) -> Device:
    is_controller = given.role == CONTROLLER
    permissions = granted({}, Grant(given.permissions, given.scopes), Grant()) if is_controller else {}
    row = Device(
        device_id=device_id(line.public_key),
        public_key=encode_public_key(line.public_key),
        friendly_name=storable(clean(line.name)),
        role=given.role,
        permissions_json=canonical_json(permissions).decode(),
        added_at=now(),
        added_by=Device.AddedBy.MANUAL,
        user_id=given.user_id if is_controller else None,
        groups_json=names_text(given.groups) if is_controller else "",
        **on_entry(given.role, approved=given.approved),
    )
    if is_controller and given.days is not None:
        end = row.added_at + dt.timedelta(days=given.days)
        row.expires_at = min(row.expires_at or end, end)
    return row
