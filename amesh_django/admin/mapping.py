"""Mapping a device to a Django user: the form, and the rule that nobody grants permissions that they do not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib.auth import get_permission_codename, get_user_model
from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device
from authmesh.protocol.display import clean_line

if TYPE_CHECKING:
    Form = forms.ModelForm[Device]
else:
    Form = forms.ModelForm

#: Name of the hidden field with the revision of the device that the page shows.
REVISION_FIELD = "amesh_revision"

HELP = gettext_lazy(
    "In REST framework views, the device acts as this user, with all permissions that the user has now or gets later. To map a "
    "device to a user, or to remove that mapping, you need the permissions to view and change users, and every permission of the "
    "user yourself; for a superuser, you must be a superuser."
)


def may_map(actor: Any) -> bool:
    """Return True if *actor* may map devices at all: to some users."""
    return bool(getattr(actor, "is_superuser", False) or actor.has_perms(_needed()))


def _needed() -> list[str]:
    users = get_user_model()._meta
    return [f"{users.app_label}.{get_permission_codename(action, users)}" for action in ("view", "change")]


def mapping_problem(actor: Any, user: Any) -> str | None:
    """Return the reason why *actor* may not map a device to *user* or remove that mapping, or None if *actor* may.

    Without this rule, a staff user who may change devices could map a device of their own to a superuser, and act as one, or to any
    customer: customers have no permissions in the admin, so to compare permissions is not enough.

    Args:
        actor: the user who is logged in.
        user: the user as whom a device acts or would act.
    """
    if getattr(actor, "is_superuser", False):
        return None
    if not may_map(actor):
        return _("You may not view and change users (%(permissions)s). Ask a superuser to change this mapping.") % {
            "permissions": ", ".join(_needed())
        }
    named = {"user": clean_line(user.get_username())}
    if getattr(user, "is_superuser", False):
        return _("%(user)s is a superuser. Ask a superuser to change this mapping.") % named
    rights = getattr(user, "get_all_permissions", None)
    if rights is None:  # a user model without Django's permissions
        return _("The permissions of %(user)s are not known. Ask a superuser to change this mapping.") % named
    if not set(rights()) <= set(actor.get_all_permissions()):
        return _("%(user)s has permissions that you do not have. Ask a superuser to change this mapping.") % named
    return None


def unmap_first(device: Device, site: str) -> SafeString:
    """Return the text that says why a user cannot be deleted, and which device to unmap first.

    Args:
        device: the device that acts as the user.
        site: name of the admin site, for the link.
    """
    page = reverse("admin:amesh_device_change", args=[device.pk], current_app=site)
    return format_html(
        _(
            "The device {device} is mapped to {user}. To delete this user, open the page of the device, remove the mapped user, and "
            "save. A revoked device can be unmapped too."
        ),
        device=format_html('<a href="{}">{}</a>', page, device),
        user=clean_line(device.user.get_username()) if device.user is not None else "",
    )


class MappingForm(Form):
    """The form of a device; its only field is the mapped user.

    Attributes:
        actor: the user who is logged in. :class:`.DeviceAdmin` creates a subclass with it for each request.
    """

    actor: ClassVar[Any] = None

    def clean(self) -> dict[str, Any]:
        """Reject a mapping that *actor* may not make, and a change from a page that is out of date."""
        cleaned = super().clean() or self.cleaned_data
        if self.data.get(REVISION_FIELD) != str(self.instance.revision):
            raise ValidationError(
                _("The device was changed while this page was open. Check its current state, then save again."),
                code="changed_meanwhile",
            )
        if "user" not in self.changed_data or "user" in self.errors:
            return cleaned
        user = cleaned.get("user")
        for one in (user, self.instance.user):  # the instance still has the old user
            problem = mapping_problem(self.actor, one) if one is not None else None
            if problem:
                raise ValidationError({"user": ValidationError(problem, code="rights")})
        if user is not None and not user.is_active:
            raise ValidationError(
                {
                    "user": ValidationError(
                        _(
                            "%(user)s is not active, so requests of the device would be rejected. Activate the user first."
                        ),
                        code="inactive",
                        params={"user": clean_line(user.get_username())},
                    )
                }
            )
        return cleaned
