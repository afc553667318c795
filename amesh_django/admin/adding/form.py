"""The forms that add a device by hand: the line that is pasted, and what the device gets."""

from __future__ import annotations

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.enrollment.by_hand import Given
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.errors import AmeshError, spelled
from authmesh.protocol.key_line import MAX_LINE_CHARACTERS, PREFIX, KeyLine, parse_key_line

from ..giving import OneDeviceForm


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


class AddingForm(OneDeviceForm):
    """What the device gets, and that its ID was compared."""

    role = forms.ChoiceField(
        label=gettext_lazy("Role"),
        initial=CONTROLLER,
        widget=forms.RadioSelect,
        choices=[
            (CONTROLLER, gettext_lazy("controller: it may call this server")),
            (TARGET, gettext_lazy("target: this server may call it, and it gets nothing of what follows")),
        ],
    )
    compared = forms.BooleanField(
        label=gettext_lazy("I have compared the device ID with the one that the device shows."),
        error_messages={
            "required": gettext_lazy("Compare the device ID first: the line may be that of another device.")
        },
    )

    field_order = ("compared", "role", "permissions", "scopes", "groups", "user", "device_days", "approved")

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
