"""The forms about a group: its name and scopes, and who joins it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.decisions import is_group_name
from amesh_django.grantable import check_grantable, permissions_to_grant
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

from ..offering import offer

#: Devices that join a group at once.
MAX_JOINING = 200


def lacking(actor: Any, scopes: Iterable[str]) -> list[str]:
    """Return the Django permissions that a person lacks to grant scopes."""
    return sorted(one for one in permissions_to_grant("scope", scopes) if not actor.has_perm(one))


def refusal(missing: Iterable[str]) -> str:
    """Return the sentence that says which permissions a person lacks."""
    return _("You may not grant this. You need: %(permissions)s.") % {"permissions": ", ".join(missing)}


class GroupForm(forms.Form):
    """Name and scopes of a group. Scopes are added only by who may grant them; anybody who may grant at all may remove them.

    Args:
        actor: the user who is logged in.
        data: the form that was sent.
        name: the group; empty for a new one.
        scopes: the scopes that it has.
    """

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=64,
        help_text=gettext_lazy("At most 64 of a-z, 0-9, dot, underscore, and hyphen. A group is not renamed later."),
    )
    scopes = forms.CharField(
        label=gettext_lazy("Scopes"),
        required=False,
        help_text=gettext_lazy("Names such as orders:read, separated by spaces. Each member has them."),
    )

    def __init__(self, actor: Any, data: Any = None, *, name: str = "", scopes: Iterable[str] = ()) -> None:
        super().__init__(data)
        self._actor, self._before = actor, set(scopes)
        self.fields["scopes"].initial = " ".join(sorted(scopes))
        if name:
            del self.fields["name"]
        offer(self, actor, "scope", "scopes", also=sorted(scopes))
        if isinstance(self.fields.get("scopes"), forms.MultipleChoiceField):
            self.fields["scopes"].initial = sorted(scopes)

    def clean_name(self) -> str:
        """Reject a name that a group cannot have."""
        name: str = self.cleaned_data["name"]
        if not is_group_name(name):
            raise ValidationError(_("Use at most 64 of a-z, 0-9, dot, underscore, and hyphen."), code="name")
        return name

    def clean_scopes(self) -> list[str]:
        """Reject new scopes that the settings do not know, and those that the user may not grant."""
        given = self.cleaned_data["scopes"]
        names = given.replace(",", " ").split() if isinstance(given, str) else list(given)
        new = [name for name in names if name not in self._before]
        try:
            check_grantable("scope", new)
        except AmeshError as error:
            raise ValidationError(error.text(), code="scope") from None
        missing = lacking(self._actor, new)
        if missing:
            raise ValidationError(refusal(missing), code="rights")
        return names


class MembersForm(forms.Form):
    """The devices that join a group."""

    devices = forms.CharField(
        label=gettext_lazy("Add devices"),
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField", "spellcheck": "false"}),
        help_text=gettext_lazy("Device IDs (am_…), separated by spaces or line breaks. The list of devices has them."),
        error_messages={"required": gettext_lazy("Enter at least one device ID.")},
    )

    def clean_devices(self) -> list[str]:
        """Return the device IDs."""
        ids = list(dict.fromkeys(re.split(r"[\s,]+", self.cleaned_data["devices"].strip())))
        for name in ids:
            if not re.fullmatch(r"am_[A-Za-z0-9_-]{16}", name):
                raise ValidationError(
                    _("%(text)s is not a device ID."), code="id", params={"text": clean_line(name)[:64]}
                )
        if len(ids) > MAX_JOINING:
            raise ValidationError(_("Add at most %(max)d devices at once."), code="many", params={"max": MAX_JOINING})
        return ids
