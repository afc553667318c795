"""Mapping a device to a Django user: who may hand out whose rights, and the form that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device
from authmesh.protocol.display import clean_line

if TYPE_CHECKING:
    Form = forms.ModelForm[Device]
else:
    Form = forms.ModelForm

#: Name of the hidden field with the revision of the device that the page showed.
REVISION_FIELD = "amesh_revision"

HELP = gettext_lazy(
    "The device acts as this user in REST framework views, with all the user’s rights, now and later. You can map to a "
    "user, or away from one, only if you have every right of that user yourself: superusers are for superusers."
)


def rights_refusal(actor: Any, user: Any) -> str | None:
    """Why *actor* may not hand out, or take away, the rights of *user*; None if that is all right.

    Otherwise a member of staff who may change devices could map one whose key they hold to a superuser, and be one.

    Args:
        actor: who is logged in.
        user: the user as which a device would act.
    """
    if getattr(actor, "is_superuser", False):
        return None
    named = {"user": clean_line(user.get_username())}
    if getattr(user, "is_superuser", False):
        return _("%(user)s is a superuser. Ask a superuser to change this mapping.") % named
    rights = getattr(user, "get_all_permissions", None)
    if rights is None:  # a user model without Django's permissions: nothing says what such a user may do
        return _("It can’t be told what %(user)s may do. Ask a superuser to change this mapping.") % named
    if not set(rights()) <= set(actor.get_all_permissions()):
        return _("%(user)s has rights that you do not have. Ask a superuser to change this mapping.") % named
    return None


class MappingForm(Form):
    """The one thing about a device that is edited here. :class:`DeviceAdmin` makes a subclass with the *actor* per request."""

    actor: ClassVar[Any] = None

    def clean(self) -> dict[str, Any]:
        """Refuse what would raise rights, and what was decided on a page that is out of date."""
        cleaned = super().clean() or self.cleaned_data
        if self.data.get(REVISION_FIELD) != str(self.instance.revision):
            raise ValidationError(
                _("The device was changed while this page was open. Look at it as it stands now, then save again."),
                code="changed_meanwhile",
            )
        if "user" not in self.changed_data or "user" in self.errors:
            return cleaned
        user = cleaned.get("user")
        for one in (user, self.instance.user):  # the instance still is as it was read
            refusal = rights_refusal(self.actor, one) if one is not None else None
            if refusal:
                raise ValidationError({"user": ValidationError(refusal, code="rights")})
        if user is not None and not user.is_active:
            raise ValidationError(
                {
                    "user": ValidationError(
                        _("%(user)s is not active, so the device would be refused. Activate the user first."),
                        code="inactive",
                        params={"user": clean_line(user.get_username())},
                    )
                }
            )
        return cleaned
