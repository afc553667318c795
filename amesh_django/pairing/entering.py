"""The allow list of a pairing: the device enters it with everything that was chosen, in the one change in which it is trusted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import GroupNotFound, WrongState, update_if_new
from amesh_django.decisions.rows import earlier_expiry
from amesh_django.models import AuditEvent, Device
from amesh_django.trust.chain import Actor
from amesh_django.trust.change import Change
from amesh_django.trust.groups import names_text
from amesh_django.trust.sealing import now
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.keys import encode_public_key

from .chosen import Chosen
from .errors import PairingCanceled


class ChosenAllowList(DatabaseAllowList):
    """The allow list, as the ceremony of one pairing uses it.

    A device that is in the list already gets the permissions, scopes, and groups that were chosen in place of its own. It keeps its
    state, and the user as whom it acts; no pairing lets it act as another one.

    Args:
        chosen: what the device gets. The permissions are in the entry.
        by: the person.
        is_wanted: returns False if the person has canceled meanwhile. Called while the list is locked.
    """

    def __init__(self, chosen: Chosen, *, by: Actor, is_wanted: Callable[[], bool]) -> None:
        super().__init__(by=by, approved=chosen.approved)
        self._chosen = chosen
        self._is_wanted = is_wanted

    def _put(self, pending: Change, entry: DeviceEntry) -> Device:
        if not self._is_wanted():
            raise PairingCanceled()
        chosen = self._chosen
        missing = sorted(set(chosen.groups) - set(pending.groups()))
        if missing:
            raise GroupNotFound(
                _("There is no group %(name)s any more; nothing was changed.") % {"name": repr(missing[0])}
            )
        known = pending.find(public_key=encode_public_key(entry.public_key))
        self._check_user(known)
        row = super()._put(pending, entry)
        for one in pending.replaced_by(row.device_id):
            less = {"groups_json": row.groups_json, **earlier_expiry(one, row.expires_at)}
            update_if_new(pending, one, AuditEvent.Kind.TRUST, less)
        return row

    def _check_user(self, known: Device | None) -> None:
        if not self._chosen.user:
            return
        if known is not None and not known.is_revoked and str(known.user_id or self._chosen.user) != self._chosen.user:
            raise WrongState(
                _("%(device)s acts as another user already; nothing was changed.") % {"device": known.device_id},
                hint=_("Map it to the user on its page."),
            )
        users = get_user_model()
        found = users._default_manager.using(self._using).filter(pk=self._chosen.user).first()
        if found is None or not found.is_active:
            raise WrongState(_("The user as whom the device would act is gone or not active; nothing was changed."))

    def _entered(self, entry: DeviceEntry, row: Device | None) -> dict[str, Any]:
        columns = {**super()._entered(entry, row), "groups_json": names_text(self._chosen.groups)}
        if self._chosen.user:
            columns["user_id"] = get_user_model()._meta.pk.to_python(self._chosen.user)
        if self._chosen.days is not None:
            end = now() + dt.timedelta(days=self._chosen.days)
            columns["expires_at"] = min(columns.get("expires_at") or end, end)
        return columns
