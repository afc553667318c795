"""The page of one device: what it is and may do, how it came, what it does, and what would break without it."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device, DeviceActivity
from amesh_django.states import ACTIVE
from amesh_django.trust import current_list
from amesh_django.usage import reading
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.scopes import SCOPES

from .. import charts, fleet, mapping, shown
from ..approvals.coming import coming
from .acting import ActingAdmin
from .columns import Columns
from .history import MAX_LINES, history, permissions
from .requests import requests_of

_ROLES = {
    CONTROLLER: _("controller: it may authenticate to this server"),
    TARGET: _("target: this server may authenticate to it, but it may not authenticate to this server"),
}
#: Days that the chart shows.
_DAYS = 30


class DevicePage(Columns, ActingAdmin):
    """The part of :class:`.DeviceAdmin` that shows one device."""

    def get_fieldsets(self, request: HttpRequest, obj: Device | None = None) -> Any:
        """Return the sealed fields, the last request, and the mapped user."""
        trust = ["came_in_words", "added_in_full", "expiry_in_full"]
        if obj is not None and shown.is_revoked(obj):
            trust += ["revoked_in_full", "revoked_by_whom", "why_revoked"]
        elif obj is not None and shown.details(obj):
            trust.insert(0, "state_in_full")
        if obj is not None and obj.rotation_requested_at is not None and obj.revoked_at is None:
            trust.append("rotation_in_full")
        return [
            (None, {"fields": ["shown_name", "state", "shown_id", "role_in_words", "shown_note", "shown_key"]}),
            (_("Trust"), {"fields": trust}),
            (_("What it may do"), {"fields": ["shown_permissions", "shown_scopes", "shown_groups"]}),
            (_("Last request"), {"fields": ["seen_in_full", "seen_from", "seen_at", "seen_client"]}),
            (_("Acts as"), {"fields": ["user"]}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Device | None = None) -> list[str]:
        """Return all fields except the mapped user."""
        fieldsets = self.get_fieldsets(request, obj)
        return [name for _title, options in fieldsets for name in options["fields"] if name != "user"]

    @admin.display(description=_("role"))
    def role_in_words(self, device: Device) -> str:
        """Return what the role means, as long as the device is trusted."""
        if shown.state_of(device) != ACTIVE or device.role not in _ROLES:
            return shown.choice(device.get_role_display())
        return str(_ROLES[device.role])

    @admin.display(description=_("note"))
    def shown_note(self, device: Device) -> SafeString | str:
        """Return the note, with its line breaks."""
        lines = [clean_line(line) for line in device.note.splitlines()]
        return format_html('<span class="amesh-note">{}</span>', "\n".join(lines)) if device.note else shown.NOTHING

    @admin.display(description=_("permissions"))
    def shown_permissions(self, device: Device) -> str:
        """Return the permissions without the scopes. If they cannot be read, return their text."""
        found = {name: value for name, value in device.permissions.items() if name != SCOPES}
        return permissions(json.dumps(found) if device.permissions else device.permissions_json)

    @admin.display(description=_("scopes"))
    def shown_scopes(self, device: Device) -> str:
        """Return its own scopes, and those that it has by its groups."""
        raw = device.permissions.get(SCOPES)
        own = [clean_line(str(name)) for name in raw] if isinstance(raw, list) else []
        try:
            known = current_list().snapshot().known(device.pk)
        except AmeshError:
            known = None
        by_groups = sorted(clean_line(name) for name in (known.scopes if known is not None else ()))
        parts = [", ".join(own)] if own else []
        if more := [name for name in by_groups if name not in own]:
            parts.append(gettext("by its groups: %(scopes)s") % {"scopes": ", ".join(more)})
        return "; ".join(parts) or gettext("none")

    @admin.display(description=_("groups"))
    def shown_groups(self, device: Device) -> str:
        return ", ".join(clean_line(name) for name in device.groups) or gettext("none")

    @admin.display(description=_("public key"))
    def shown_key(self, device: Device) -> SafeString:
        return shown.code(device.public_key)

    @admin.display(description=_("how it came"))
    def came_in_words(self, device: Device) -> str:
        found = coming([device])[device.device_id]
        return (
            gettext("%(how)s, from %(address)s") % {"how": found.how, "address": found.address}
            if found.address
            else found.how
        )

    @admin.display(description=_("added"))
    def added_in_full(self, device: Device) -> str:
        return shown.full_time(device.added_at)

    @admin.display(description=_("expires"))
    def expiry_in_full(self, device: Device) -> str:
        return shown.full_time(device.expires_at) if device.expires_at is not None else gettext("never")

    @admin.display(description=_("asked for a new key"))
    def rotation_in_full(self, device: Device) -> str:
        return shown.full_time(device.rotation_requested_at)

    @admin.display(description=_("last seen"))
    def seen_in_full(self, device: Device) -> SafeString | str:
        moment = getattr(device, "last_seen_at", None)
        return format_html("{} ({})", shown.ago(moment), shown.full_time(moment)) if moment else shown.ago(None)

    @admin.display(description=_("address"))
    def seen_from(self, device: Device) -> str:
        return _of_activity(device, "address")

    @admin.display(description=_("path"))
    def seen_at(self, device: Device) -> str:
        return _of_activity(device, "route")

    @admin.display(description=_("client"))
    def seen_client(self, device: Device) -> str:
        return _of_activity(device, "client")

    @admin.display(description=_("state"))
    def state_in_full(self, device: Device) -> str:
        return shown.details(device)

    @admin.display(description=_("revoked"))
    def revoked_in_full(self, device: Device) -> str:
        return shown.full_time(device.revoked_at)

    @admin.display(description=_("revoked by"))
    def revoked_by_whom(self, device: Device) -> str:
        return clean_line(device.revoked_by) or shown.NOTHING

    @admin.display(description=_("reason"))
    def why_revoked(self, device: Device) -> str:
        return clean_line(device.revoke_reason) or shown.NOTHING

    def panels(self, request: HttpRequest, device: Device) -> dict[str, Any]:
        """Return what the page of a device shows beside its fields: buttons, requests, servers, and its log."""
        lines, older = history(device.device_id)
        return {
            "title": str(device),
            "subtitle": None,
            "amesh_may_revoke": not shown.is_revoked(device) and self.has_revoke_permission(request, device),
            "amesh_verbs": self.offered(request, device),
            "amesh_chart": charts.bars(reading.by_day(device.device_id, _DAYS)),
            **requests_of(device),
            "amesh_words": fleet.words_about(device.public_key),
            "amesh_under_way": fleet.under_way(device.revision),
            "amesh_waiting": fleet.waiting(device.revision),
            "amesh_history": lines,
            "amesh_history_max": MAX_LINES if older else None,
            "amesh_log": self._log_of(request, device),
            "amesh_revision_field": mapping.REVISION_FIELD,
        }

    def _log_of(self, request: HttpRequest, device: Device) -> str:
        """Return the address of all events of a device, or an empty text if the user may not view the audit log."""
        if not request.user.has_perm("amesh.view_auditevent"):
            return ""
        page = self.page("changelist", model="auditevent")
        return f"{page}?{urlencode({'q': device.device_id})}"


def _of_activity(device: Device, name: str) -> str:
    activity: DeviceActivity | None = getattr(device, "activity", None)
    return clean_line(str(getattr(activity, name, "") or "")) or shown.NOTHING
