"""The forms of what devices get that are not known yet, and the rule that nobody hands out what they may not give themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib.auth import get_permission_codename, get_user_model
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.conf import amesh_settings
from amesh_django.enrollment import tokens
from amesh_django.grantable import Kind, check_grantable, permissions_to_grant
from amesh_django.trust import current_list
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

from .mapping import mapping_problem
from .offering import offer

_DAY = 86400


class GivingForm(forms.Form):
    """The base of the forms with scopes, groups, a user, an end, and an approval.

    Args:
        actor: the user who is logged in. What they may not hand out has no field.
        data: the form that was sent.
    """

    scopes = forms.CharField(
        label=gettext_lazy("Scopes"),
        required=False,
        help_text=gettext_lazy("Names such as orders:read, separated by spaces. Each machine gets them."),
    )
    groups = forms.MultipleChoiceField(
        label=gettext_lazy("Groups"), required=False, widget=forms.CheckboxSelectMultiple
    )
    user = forms.CharField(
        label=gettext_lazy("Mapped user"),
        required=False,
        help_text=gettext_lazy(
            "Name of a user. In REST framework views, each machine acts as this user, with all permissions that the user has."
        ),
    )
    device_days = forms.IntegerField(
        label=gettext_lazy("Keys expire after (days)"),
        required=False,
        min_value=1,
        max_value=tokens.MAX_DEVICE_SECONDS // _DAY,
        help_text=gettext_lazy(
            "How long the key of a machine is valid. A rotation renews it. Empty for no such limit."
        ),
    )
    approved = forms.BooleanField(
        label=gettext_lazy("Approved"),
        required=False,
        help_text=gettext_lazy("The machines need no further approval."),
    )

    def __init__(self, actor: Any, data: Any = None) -> None:
        super().__init__(data)
        self._actor = actor
        names = sorted(current_list().snapshot().groups.scopes)
        self.fields["groups"].choices = [(name, clean_line(name)) for name in names]  # type: ignore[attr-defined]
        if not names:
            del self.fields["groups"]
        if not actor.has_perm("amesh.approve_device"):
            del self.fields["approved"]
        users = get_user_model()._meta
        needed = [f"{users.app_label}.{get_permission_codename(one, users)}" for one in ("view", "change")]
        if not actor.has_perms(needed):  # nor must this form tell which users there are
            del self.fields["user"]

    def clean_scopes(self) -> list[str]:
        """Reject scopes that the settings do not know, and those that the user may not grant."""
        return self._names("scope", self.cleaned_data["scopes"])

    def clean_groups(self) -> list[str]:
        """Reject groups with scopes that the user may not grant."""
        names: list[str] = self.cleaned_data["groups"]
        known = current_list().snapshot().groups.scopes
        self._check_rights("scope", {scope for name in names for scope in known.get(name, ())})
        return names

    def clean_user(self) -> Any:
        """Return the user. Reject one as whom the user who is logged in may not let a device act."""
        name = self.cleaned_data["user"]
        if not name:
            return None
        users = get_user_model()
        found = users._default_manager.filter(**{users.USERNAME_FIELD: name}).first()
        if found is None:
            raise ValidationError(_("There is no user with this name."), code="unknown")
        problem = mapping_problem(self._actor, found)
        if problem:
            raise ValidationError(problem, code="rights")
        if not found.is_active:
            raise ValidationError(
                _("%(user)s is not active, so requests of the machines would be rejected. Activate the user first."),
                code="inactive",
                params={"user": clean_line(found.get_username())},
            )
        return found

    def _names(self, kind: Kind, given: str | list[str]) -> list[str]:
        """Return names that were typed or chosen, if the user may grant them."""
        names = given.replace(",", " ").split() if isinstance(given, str) else given
        try:
            check_grantable(kind, names)
        except AmeshError as error:
            raise ValidationError(error.text(), code=kind) from None
        self._check_rights(kind, names)
        return names

    def _check_rights(self, kind: Kind, names: Iterable[str]) -> None:
        missing = [one for one in permissions_to_grant(kind, names) if not self._actor.has_perm(one)]
        if missing:
            raise ValidationError(
                _("You may not grant this. You need: %(permissions)s."),
                code="rights",
                params={"permissions": ", ".join(sorted(missing))},
            )


class OneDeviceForm(GivingForm):
    """The base of the forms about one device. Permissions need ``amesh.grant_device``; scopes need what the settings say."""

    permissions = forms.CharField(
        label=gettext_lazy("Permissions"),
        required=False,
        help_text=gettext_lazy("Names such as shell, separated by spaces."),
    )

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
