"""The form that makes an enrollment token."""

from __future__ import annotations

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy, ngettext_lazy

from authmesh.device.directory import MAX_NAME_CHARACTERS, check_name
from authmesh.protocol.enrollment import MAX_USES
from authmesh.protocol.errors import InvalidInput

from .giving import GivingForm

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

LIFETIMES = [
    (15 * _MINUTE, ngettext_lazy("%d minute", "%d minutes", 15) % 15),
    (_HOUR, ngettext_lazy("%d hour", "%d hours", 1) % 1),
    (8 * _HOUR, ngettext_lazy("%d hour", "%d hours", 8) % 8),
    (_DAY, ngettext_lazy("%d day", "%d days", 1) % 1),
    (7 * _DAY, ngettext_lazy("%d day", "%d days", 7) % 7),
    (30 * _DAY, ngettext_lazy("%d day", "%d days", 30) % 30),
]


class TokenForm(GivingForm):
    """The form of a new enrollment token."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=MAX_NAME_CHARACTERS,
        help_text=gettext_lazy("For people. The audit log names it with each machine."),
    )
    uses = forms.IntegerField(
        label=gettext_lazy("Machines"),
        min_value=1,
        max_value=MAX_USES,
        initial=1,
        help_text=gettext_lazy("How many machines may enroll with the token."),
    )
    lifetime = forms.TypedChoiceField(label=gettext_lazy("Valid for"), choices=LIFETIMES, coerce=int, initial=_HOUR)

    field_order = ("name", "uses", "lifetime")

    def clean_name(self) -> str:
        """Reject a name with characters that could deceive."""
        try:
            return check_name(self.cleaned_data["name"])
        except InvalidInput as error:
            raise ValidationError(str(error.message), code="name") from None
