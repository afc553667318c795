"""The allow list of a pairing: the device enters it with everything that was chosen, in the one change in which it is trusted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import GroupNotFound, WrongState, update_if_new
from amesh_django.decisions.rows import earlier_expiry
from amesh_django.fleet import overview
from amesh_django.models import AuditEvent, Device
from amesh_django.trust.chain import Actor
from amesh_django.trust.change import Change
from amesh_django.trust.database import database
from amesh_django.trust.groups import names_text
from amesh_django.trust.sealing import now
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.keys import encode_public_key

from .chosen import Chosen
from .errors import PairingCanceled


class Seen(NamedTuple):
    """What this server knew of a device when the page showed it.

    Attributes:
        revision: of its row; None if the list does not have the device.
        words: what hubs had said about its key: hub, epoch, and serial.
    """

    revision: int | None
    words: tuple[tuple[str, str, int], ...]


def seen(public_key: str) -> Seen:
    """Return what this server knows of a device now.

    Args:
        public_key: in base64, as the model holds it.
    """
    row = Device.objects.using(database()).filter(public_key=public_key).first()
    words = sorted((word.hub, word.epoch, word.serial) for word in overview.words_about(public_key))
    return Seen(row.revision if row is not None else None, tuple(words))


class ChosenAllowList(DatabaseAllowList):
    """The allow list, as the ceremony of one pairing uses it.

    A device that is in the list already gets the permissions, scopes, and groups that were chosen in place of its own. It keeps its
    state, and the user as whom it acts; no pairing lets it act as another one.

    Args:
        chosen: what the device gets. The permissions are in the entry.
        by: the person.
        is_wanted: returns False if the person has canceled meanwhile. Called while the list is locked.
        shown: returns what the page has shown of the device. What was decided since, such as a revocation, is not undone.
    """

    def __init__(
        self, chosen: Chosen, *, by: Actor, is_wanted: Callable[[], bool], shown: Callable[[], Seen | None]
    ) -> None:
        super().__init__(by=by, approved=chosen.approved)
        self._chosen = chosen
        self._is_wanted = is_wanted
        self._shown = shown

    def _put(self, pending: Change, entry: DeviceEntry) -> Device:
        if not self._is_wanted():
            raise PairingCanceled()
        chosen = self._chosen
        missing = sorted(set(chosen.groups) - set(pending.groups()))
        if missing:
            raise GroupNotFound(
                _("There is no group %(name)s any more; nothing was changed.") % {"name": repr(missing[0])}
            )
        public_key = encode_public_key(entry.public_key)
        known = pending.find(public_key=public_key)
        if seen(public_key) != self._shown():
            raise WrongState(
                _("%(device)s was changed while the pairing ran; nothing was changed.") % {"device": entry.device_id},
                hint=_("Look at what was decided about it, then start again."),
            )
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
            kept = row.expires_at if row is not None and not row.is_revoked else None  # as its state, that stays
            columns["expires_at"] = min(filter(None, (columns.get("expires_at"), kept, end)))
        return columns
