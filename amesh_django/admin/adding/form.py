"""The forms that add a device by hand: the line that is pasted, and what the device gets."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.conf import amesh_settings
from amesh_django.enrollment.by_hand import Given
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.errors import AmeshError, spelled
from authmesh.protocol.key_line import MAX_LINE_CHARACTERS, PREFIX, KeyLine, parse_key_line

from ..giving import GivingForm
from ..offering import offer


class LineForm(forms.Form):
    """The line that ``export-key`` has printed on the device."""

    line = forms.CharField(
        label=gettext_lazy("Line of export-key"),
        max_length=2 * MAX_LINE_CHARACTERS,
        widget=forms.Textarea(
            attrs={"rows": 4, "class": "vLargeTextField", "spellcheck": "false", "autocomplete": "off"}
        ),
        help_text=gettext_lazy("One line for one device. It begins with amesh-key-v1. Line breaks in it do no harm."),
        error_messages={"required": gettext_lazy("Paste the line that amesh export-key prints on the device.")},
    )

    def clean_line(self) -> KeyLine:
        """Return the content of the line."""
        text: str = self.cleaned_data["line"]
        if text.count(PREFIX) > 1:
            raise ValidationError(
                _(
                    "There are several lines. Add one device after the other, or use manage.py amesh_trust on the server."
                ),
                code="several",
            )
        try:
            return parse_key_line(text)
        except AmeshError as error:
            raise ValidationError(f"{_(str(error.message))} {_(spelled(error.hint))}", code="line") from None


class AddingForm(GivingForm):
    """What the device gets, and that its ID was compared. Permissions need ``amesh.grant_device``."""

    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        initial=CONTROLLER,
        widget=forms.RadioSelect,
        choices=[
            (CONTROLLER, gettext_lazy("controller: it may call this server")),
            (TARGET, gettext_lazy("target: this server may call it, and it gets nothing of what follows")),
        ],
    )
    permissions = forms.CharField(
        label=gettext_lazy("Permissions"),
        required=False,
        help_text=gettext_lazy("Names such as shell, separated by spaces."),
    )
    compared = forms.BooleanField(
        label=gettext_lazy("I have compared the device ID with the one that the device shows."),
        error_messages={
            "required": gettext_lazy("Compare the device ID first: the line may be that of another device.")
        },
    )

    field_order = ("compared", "role", "permissions", "scopes", "groups", "user", "device_days", "approved")

    def __init__(self, actor: Any, data: Any = None) -> None:
        super().__init__(actor, data)
        fields = self.fields
        fields["scopes"].help_text = _("Names such as orders:read, separated by spaces.")
        fields["device_days"].label = _("Expires after (days)")
        fields["device_days"].help_text = _(
            "After that, requests of the device are rejected. A rotation of its key renews it. Empty for no such limit."
        )
        if "user" in fields:
            fields["user"].help_text = _(
                "Name of a user. In REST framework views, the device acts as this user, with all permissions that the user has."
            )
        if "approved" in fields and amesh_settings().REQUIRE_APPROVAL:
            fields["approved"].initial = True
            fields["approved"].help_text = _("The device needs no further approval.")
        else:
            fields.pop("approved", None)
        if actor.has_perm("amesh.grant_device"):
            offer(self, actor, "permission", "permissions")
        else:
            del fields["permissions"]
        offer(self, actor, "scope", "scopes")

    def clean_permissions(self) -> list[str]:
        """Reject permissions that the settings do not know, and those that the user may not grant."""
        return self._names("permission", self.cleaned_data["permissions"])

    def given(self) -> Given:
        """Return what was chosen in a valid form."""
        found = self.cleaned_data
        user = found.get("user")
        return Given(
            role=found["role"],
            permissions=found.get("permissions", ()),
            scopes=found.get("scopes", ()),
            groups=found.get("groups", ()),
            user_id=user.pk if user is not None else None,
            days=found["device_days"],
            approved=found.get("approved", False),
        )
