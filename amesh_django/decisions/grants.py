"""Decisions about what a device may do: its permissions and scopes, and groups of devices."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.grantable import check_grantable
from amesh_django.kinds import EventKind
from amesh_django.models import Device, DeviceGroup
from amesh_django.trust.change import Change
from amesh_django.trust.groups import groups_digest, names_text
from amesh_django.trust.sealing import storable
from authmesh.device.grants import NOTHING, Grant, granted
from authmesh.protocol.errors import AllowListError, Hint, InvalidInput, Run
from authmesh.protocol.seal import canonical_json

from .rows import Decided, Deciding, check_controller, check_future, earlier_expiry, milliseconds, update_if_new


class GroupNotFound(AllowListError):
    """There is no group of this name."""

    code = "group_not_found"
    default_message = "There is no such group. Nothing was changed."
    default_hint = ("To see the groups, run ", Run("group", "list"), ".")


class Grants(Deciding):
    """What a device may do."""

    def grant(
        self, device_ids: Sequence[str], given: Grant, *, taken: Grant = NOTHING, expires_at: dt.datetime | None = None
    ) -> Decided:
        """Give devices permissions, scopes, and groups, and take others from them, in one step.

        What is taken, and an earlier expiry, also apply to a key that a device has replaced and that is still valid.

        Args:
            device_ids: ``am_…``
            given: names that the settings know, see ``AMESH["PERMISSIONS"]`` and ``AMESH["SCOPES"]``, and groups that exist.
            taken: any names; those that a device does not have change nothing.
            expires_at: time from which the devices are not accepted; None leaves theirs as it is.

        Raises:
            DeviceNotFound: there is no such device, or it is revoked.
            InvalidInput: the settings do not know a permission or a scope, or *expires_at* is not in the future.
            GroupNotFound: there is no group of that name.
            WrongState: a device is a target, so it could not use what it is given.
        """
        check_grantable("permission", given.permissions)
        check_grantable("scope", given.scopes)
        check_future(expires_at)
        expiry = {"expires_at": milliseconds(expires_at)} if expires_at is not None else {}

        def work(pending: Change, row: Device) -> dict[str, Any]:
            if any(given) or expiry:
                check_controller(row)
            if given.groups:
                _check_groups(given.groups, pending.groups())
            for one in pending.replaced_by(row.device_id):
                less = {**_granted(one, NOTHING, taken), **earlier_expiry(one, expires_at)}
                update_if_new(pending, one, EventKind.GRANT, less)
            return {**_granted(row, given, taken), **expiry}

        return self._decide(EventKind.GRANT, device_ids, work)

    def groups(self) -> dict[str, frozenset[str]]:
        """Return all groups: name → scopes, compared with the seal.

        Raises:
            AllowListIntegrityFailure: the list does not match its seal.
        """
        sealed = self._sealed
        sealed.verified(list, lambda known, devices: groups_digest(sealed.groups()) == known.groups.digest)
        return dict(sealed.snapshot().groups.scopes)

    def put_group(self, name: str, scopes: Iterable[str]) -> None:
        """Make a group, or replace its scopes. Each member has them from its next request on.

        Raises:
            InvalidInput: the name has the wrong form, or the settings do not know a scope.
        """
        wanted = list(scopes)
        check_grantable("scope", wanted)
        if not is_group_name(name):
            raise InvalidInput(
                _("%(name)s is not a name for a group; nothing was changed.") % {"name": repr(name)},
                hint=_("Use at most 64 of a-z, 0-9, dot, underscore, and hyphen."),
            )
        self._sealed.change(self._by, lambda pending: pending.put_group(name, wanted))

    def remove_group(self, name: str) -> list[Device]:
        """Remove a group, and take it from its members. Return them.

        Raises:
            GroupNotFound: there is no group of that name.
        """

        def work(pending: Change) -> list[Device]:
            _check_groups([name], pending.groups())
            members = pending.members(name)
            for row in members:
                pending.update(row, EventKind.GROUP, groups_json=names_text(set(row.groups) - {name}))
            pending.delete_group(name)
            return members

        return self._sealed.change(self._by, work)


def _granted(row: Device, given: Grant, taken: Grant) -> dict[str, Any]:
    permissions = canonical_json(granted(row.permissions, given, taken)).decode()
    groups = names_text((set(row.groups) - set(taken.groups)) | set(given.groups))
    return {"permissions_json": storable(permissions), "groups_json": groups}


def is_group_name(name: str) -> bool:
    """Return True if a group may have this name."""
    return 0 < len(name) <= 64 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")


def _check_groups(names: Iterable[str], known: Mapping[str, DeviceGroup]) -> None:
    for name in names:
        if name not in known:
            hint: Hint = (_("Known: %(names)s.") % {"names": ", ".join(sorted(known))},) if known else ()
            raise GroupNotFound(
                _("There is no group %(name)s; nothing was changed.") % {"name": repr(name)},
                hint=hint or (_("To make one, run "), Run("group", "add NAME --scope SCOPE"), "."),
            )
