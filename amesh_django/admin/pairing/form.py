"""The form of a pairing: what the device gets once it is verified."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device
from amesh_django.pairing.chosen import Chosen
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.owner import controller_limit
from authmesh.protocol.allow_list import CONTROLLER

from .. import shown
from ..giving import OneDeviceForm
from ..selecting import verified

# Maximum number of controllers among which one is chosen. With more, one is revoked on its page first.
_MAX_REPLACED = 100


class PairingForm(OneDeviceForm):
    """The form of a pairing."""

    replaces = forms.ChoiceField(label=gettext_lazy("Replaces"), required=False)

    field_order = ("permissions", "scopes", "groups", "user", "device_days", "approved", "replaces")

    def __init__(self, actor: Any, data: Any = None) -> None:
        super().__init__(actor, data)
        self._offer_controllers()

    def _offer_controllers(self) -> None:
        """Ask which controller is revoked, if the list is full, and the user may revoke one."""
        row = current_list().snapshot().row
        is_full = row is not None and row.controllers >= controller_limit()
        found = []
        if is_full and self._actor.has_perm("amesh.revoke_device"):
            rows = Device.objects.using(database()).filter(role=CONTROLLER, revoked_at=None, denied_at=None)
            found = verified(rows.order_by("added_at", "pk")[: _MAX_REPLACED + 1])
        self.is_full = is_full
        if not 0 < len(found) <= _MAX_REPLACED:
            del self.fields["replaces"]
            return
        field: Any = self.fields["replaces"]
        choices = [(one.device_id, f"{shown.name(one)} ({one.device_id})") for one in found]
        field.choices = [("", _("none: the pairing fails, unless the device is in the list already")), *choices]
        field.help_text = _(
            "The list has as many controllers as it may have. This one is revoked when the device is trusted."
        )

    def chosen(self) -> Chosen:
        """Return what was chosen in a valid form."""
        given = self.cleaned_data
        user = given.get("user")
        return Chosen(
            permissions=tuple(given.get("permissions", ())),
            scopes=tuple(given.get("scopes", ())),
            groups=tuple(given.get("groups", ())),
            user=str(user.pk) if user is not None else "",
            days=given["device_days"],
            approved=given.get("approved", False),
            replaces=given.get("replaces", ""),
        )


def problem(actor: Any, chosen: Chosen) -> str | None:
    """Return the reason why a user may no longer give a device what was chosen, or None if they may.

    Args:
        actor: the user.
        chosen: what they, or someone with their rights, chose before.
    """
    user = get_user_model()._default_manager.filter(pk=chosen.user).first() if chosen.user else None
    form = PairingForm(actor)
    data: dict[str, Any] = {
        "user": user.get_username() if user is not None else "",
        "groups": list(chosen.groups),
        "device_days": chosen.days,
        "approved": chosen.approved,
        "replaces": chosen.replaces,
    }
    for name in ("permissions", "scopes"):
        is_list = isinstance(form.fields.get(name), forms.MultipleChoiceField)
        data[name] = list(getattr(chosen, name)) if is_list else " ".join(getattr(chosen, name))
    form = PairingForm(actor, data)
    if form.is_valid() and form.chosen() == chosen:
        return None
    return _("You may no longer give a device what was chosen, or it does not exist any more. Start again.")
