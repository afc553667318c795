"""The columns of the list of devices, and its filters."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import F
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from amesh_django.models import Device
from authmesh.protocol.display import clean_line

from .. import shown


class Columns:
    """The part of :class:`.DeviceAdmin` that shows a device as a row. The page of a device shows some of them, too."""

    @admin.display(description=_("name"), ordering="friendly_name")
    def shown_name(self, device: Device) -> str:
        return shown.name(device)

    @admin.display(description=_("device ID"), ordering="device_id")
    def shown_id(self, device: Device) -> SafeString:
        return shown.code(device.device_id)

    @admin.display(description=_("role"), ordering="role")
    def shown_role(self, device: Device) -> str:
        return shown.choice(device.get_role_display())

    @admin.display(description=_("state"), ordering="revoked_at")
    def state(self, device: Device) -> SafeString:
        return shown.state(device)

    @admin.display(description=_("added"), ordering="added_at")
    def added(self, device: Device) -> SafeString:
        return shown.labeled(_("added"), shown.day(device.added_at))

    @admin.display(description=_("last seen"), ordering=F("activity__last_seen_at").asc(nulls_first=True))
    def last_seen(self, device: Device) -> SafeString:
        return shown.labeled(_("last seen"), shown.ago(getattr(device, "last_seen_at", None)))

    @admin.display(description=_("added by"), ordering="added_by")
    def shown_added_by(self, device: Device) -> SafeString:
        return shown.labeled(_("added by"), shown.choice(device.get_added_by_display()))

    @admin.display(description=_("mapped user"), ordering="user")
    def shown_user(self, device: Device) -> SafeString:
        name = clean_line(device.user.get_username()) if device.user is not None else shown.NOTHING
        return shown.labeled(_("mapped user"), name)
