"""The forms with which people decide about devices. Each checks what the person may do; the decisions check the rest under a lock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from amesh_django.decisions import MAX_NOTE, Grant
from amesh_django.grantable import Kind, check_grantable, grantable, permissions_to_grant
from amesh_django.models import Device
from amesh_django.trust import current_list
from authmesh.device.directory import MAX_NAME_CHARACTERS, check_name
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError, InvalidInput
from authmesh.protocol.scopes import SCOPES

from ..offering import offer

#: Name of the hidden field with the newest revision of the devices that a page shows: each change of one gives it a higher one.
REVISION_FIELD = "amesh_revision"
_HOUR, _DAY = 3600, 86400
# Last year that is a time in each time zone.
_MAX_YEAR = 9990
_UNTIL, _FOREVER = -1, 0
_UNNAMED = (SCOPES, "rate")


class Reason(forms.Form):
    """Why something is decided."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
        help_text=gettext_lazy(
            "Stored with the device and in the audit log. Describe what happened, and who asked for it."
        ),
        error_messages={"required": gettext_lazy("Enter a reason: it tells others why this was decided.")},
    )

    def clean_reason(self) -> str:
        """Reject a reason without visible characters."""
        reason: str = self.cleaned_data["reason"]
        if not clean_line(reason).strip():
            raise ValidationError(self.fields["reason"].error_messages["required"], code="required")
        return reason


class VerbForm(forms.Form):
    """The base of all forms: nothing to fill in.

    Args:
        actor: the user who is logged in.
        devices: the devices that the page is about.
        data: the form that was sent.
    """

    def __init__(self, actor: Any, devices: Sequence[Device], data: Any = None) -> None:
        super().__init__(data)
        self.actor = actor
        self.devices = devices
        for field in self.fields.values():
            if isinstance(field, forms.DateTimeField):
                zone = _("Time zone: %(zone)s.") % {"zone": timezone.get_current_timezone_name()}
                field.help_text = f"{field.help_text} {zone}".strip()

    def clean(self) -> dict[str, Any]:
        """Reject a form from a page that is out of date."""
        cleaned = super().clean() or self.cleaned_data
        if self.data.get(REVISION_FIELD) != self.revision:
            one = _("The device was changed while this page was open. Check its current state, then try again.")
            many = _("A device was changed while this page was open. Check their current states, then try again.")
            raise ValidationError(one if len(self.devices) == 1 else many, code="changed_meanwhile")
        return {**cleaned, "was_denied": any(device.denied_at is not None for device in self.devices)}

    @property
    def revision(self) -> str:
        """The newest revision of the devices."""
        return str(max((device.revision for device in self.devices), default=0))


class ReasonForm(Reason, VerbForm):
    """Why something is decided, and nothing else."""


def _moment(label: Any, **options: Any) -> forms.DateTimeField:
    widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S")
    return forms.DateTimeField(label=label, required=False, widget=widget, **options)


def _check_future(moment: dt.datetime | None, field: str) -> None:
    if moment is not None and moment <= timezone.now():
        raise ValidationError({field: ValidationError(_("Enter a time in the future."), code="past")})
    if moment is not None and moment.year > _MAX_YEAR:
        raise ValidationError({field: ValidationError(_("Enter an earlier time."), code="late")})


class SuspendForm(ReasonForm):
    """How long, and why."""

    end = forms.TypedChoiceField(
        label=gettext_lazy("For how long"),
        choices=[
            (_HOUR, ngettext_lazy("%d hour", "%d hours", 1) % 1),
            (_DAY, ngettext_lazy("%d day", "%d days", 1) % 1),
            (_UNTIL, gettext_lazy("until the time below")),
            (_FOREVER, gettext_lazy("until it is lifted")),
        ],
        coerce=int,
        initial=_FOREVER,
        widget=forms.RadioSelect,
    )
    until = _moment(gettext_lazy("Until"))
    field_order = ("end", "until", "reason")

    def clean(self) -> dict[str, Any]:
        """Compute the end of the suspension."""
        cleaned = super().clean()
        seconds, until = cleaned.get("end"), cleaned.get("until")
        if seconds == _UNTIL and until is None and "until" not in self.errors:
            raise ValidationError({"until": ValidationError(_("Enter the time."), code="required")})
        if seconds == _UNTIL:
            _check_future(until, "until")
        else:
            until = timezone.now() + dt.timedelta(seconds=seconds) if seconds else None
        return {**cleaned, "until": until}


class ReinstateForm(VerbForm):
    """The full device ID, typed: to bring back the wrong device would let it in."""

    device_id = forms.CharField(
        label=gettext_lazy("Full device ID"),
        max_length=64,
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
        help_text=gettext_lazy("Type the ID of the device, as it stands above."),
    )

    def clean_device_id(self) -> str:
        """Reject another device ID."""
        typed: str = self.cleaned_data["device_id"].strip()
        if typed != self.devices[0].device_id:
            raise ValidationError(_("This is not the ID of the device. Compare each character."), code="other")
        return typed


class RenameForm(VerbForm):
    """Another name."""

    name = forms.CharField(label=gettext_lazy("Name"), max_length=MAX_NAME_CHARACTERS)

    def __init__(self, actor: Any, devices: Sequence[Device], data: Any = None) -> None:
        super().__init__(actor, devices, data)
        self.fields["name"].initial = clean_line(devices[0].friendly_name)[:MAX_NAME_CHARACTERS]

    def clean_name(self) -> str:
        """Reject a name with characters that could deceive."""
        try:
            return check_name(self.cleaned_data["name"])
        except InvalidInput as error:
            raise ValidationError(str(error.message), code="name") from None


class NoteForm(VerbForm):
    """What people note about the device."""

    note = forms.CharField(
        label=gettext_lazy("Note"),
        max_length=MAX_NOTE,
        required=False,
        widget=forms.Textarea(attrs={"rows": 5, "class": "vLargeTextField"}),
        help_text=gettext_lazy("For people, such as where the device stands. The audit log keeps each note."),
    )

    def __init__(self, actor: Any, devices: Sequence[Device], data: Any = None) -> None:
        super().__init__(actor, devices, data)
        self.fields["note"].initial = devices[0].note


class ExpiryForm(VerbForm):
    """The time from which the device is not accepted."""

    expires_at = _moment(
        gettext_lazy("Expires"),
        help_text=gettext_lazy("From this time on, all requests of the device are rejected. Empty for no such time."),
    )

    def __init__(self, actor: Any, devices: Sequence[Device], data: Any = None) -> None:
        super().__init__(actor, devices, data)
        self.fields["expires_at"].initial = devices[0].expires_at

    def clean(self) -> dict[str, Any]:
        """Reject a time that is over."""
        cleaned = super().clean()
        _check_future(cleaned.get("expires_at"), "expires_at")
        return cleaned


class GrantForm(VerbForm):
    """What the device may do. A name that the settings do not have, or that the person may not grant, can only be taken away."""

    permissions = forms.CharField(
        label=gettext_lazy("Permissions"), required=False, help_text=gettext_lazy("Names, separated by spaces.")
    )
    scopes = forms.CharField(
        label=gettext_lazy("Scopes"),
        required=False,
        help_text=gettext_lazy("Names such as orders:read, separated by spaces."),
    )
    groups = forms.MultipleChoiceField(
        label=gettext_lazy("Groups"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text=gettext_lazy("Each member of a group has its scopes."),
    )

    def __init__(self, actor: Any, devices: Sequence[Device], data: Any = None) -> None:
        super().__init__(actor, devices, data)
        held, scopes = devices[0].permissions, devices[0].permissions.get(SCOPES)
        self.held = Grant(
            tuple(sorted(name for name, value in held.items() if value is True and name not in _UNNAMED)),
            tuple(name for name in scopes if isinstance(name, str)) if isinstance(scopes, list) else (),
            tuple(devices[0].groups),
        )
        self._known_groups = current_list().snapshot().groups.scopes
        self._offer("permissions", "permission", self.held.permissions)
        self._offer("scopes", "scope", self.held.scopes)
        names = [name for name in sorted({*self._known_groups, *self.held.groups}) if self._may_join(name)]
        self.fields["groups"].choices = [(name, clean_line(name)) for name in names]  # type: ignore[attr-defined]
        self.fields["groups"].initial = list(self.held.groups)
        if not names:
            del self.fields["groups"]

    def _offer(self, field: str, kind: Kind, held: Sequence[str]) -> None:
        self.fields[field].initial = " ".join(held) if grantable(kind) is None else list(held)
        offer(self, self.actor, kind, field, also=held)

    def _may_join(self, group: str) -> bool:
        return group in self.held.groups or not self._missing("scope", self._known_groups[group])

    def _missing(self, kind: Kind, names: Iterable[str]) -> list[str]:
        """Return the Django permissions that the person lacks to grant names."""
        return sorted(one for one in permissions_to_grant(kind, names) if not self.actor.has_perm(one))

    def clean(self) -> dict[str, Any]:
        """Compute what is given and what is taken, and check what is given."""
        cleaned = super().clean()
        wanted = Grant(*(self._names(cleaned, field) for field in Grant._fields))
        given = Grant(*([name for name in new if name not in old] for new, old in zip(wanted, self.held, strict=True)))
        taken = Grant(*([name for name in old if name not in new] for new, old in zip(wanted, self.held, strict=True)))
        self._check("permissions", "permission", given.permissions)
        self._check("scopes", "scope", given.scopes)
        self._check("groups", "scope", {one for name in given.groups for one in self._known_groups.get(name, ())})
        return {**cleaned, "given": given, "taken": taken}

    def _names(self, cleaned: dict[str, Any], field: str) -> list[str]:
        found = cleaned.get(field, [])
        return list(dict.fromkeys(found.replace(",", " ").split() if isinstance(found, str) else found))

    def _check(self, field: str, kind: Kind, names: Iterable[str]) -> None:
        names = [*names]
        if kind == "permission" and (wrong := [name for name in names if name in _UNNAMED]):
            self.add_error(field, _("%(name)s is not granted by name.") % {"name": wrong[0]})
            return
        try:
            if field != "groups":
                check_grantable(kind, names)
        except AmeshError as error:
            self.add_error(field, error.text())
            return
        if missing := self._missing(kind, names):
            self.add_error(
                field, _("You may not grant this. You need: %(permissions)s.") % {"permissions": ", ".join(missing)}
            )
