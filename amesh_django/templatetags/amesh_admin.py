"""Tags of the admin: the red banner where the allow list does not match its seal, and a device in full."""

from __future__ import annotations

from typing import Any

from django import template

from amesh_django.models import Device
from authmesh.protocol.display import clean_line

register = template.Library()


@register.inclusion_tag("admin/amesh/seal_banner.html")
def amesh_seal_banner() -> dict[str, Any]:
    """What is wrong with the list and how to mend it; nothing while it matches its seal."""
    from amesh_django.admin.trouble import trouble  # Django loads tags in projects without its admin, too

    return {"trouble": trouble()}


@register.inclusion_tag("admin/amesh/device/card.html")
def amesh_device_card(device: Device) -> dict[str, Any]:
    """A device in full, harmless to show."""
    from amesh_django.admin import shown

    return {
        "name": shown.name(device),
        "state": shown.state(device),
        "code": shown.code(device.device_id),
        "role": shown.choice(device.get_role_display()),
        "added": shown.day(device.added_at),
        "added_by": shown.choice(device.get_added_by_display()),
        "seen": shown.ago(getattr(device, "last_seen_at", None)),
        "user": clean_line(device.user.get_username()) if device.user is not None else "",
        "revoked": shown.full_time(device.revoked_at),
        "by": clean_line(device.revoked_by) or shown.NOTHING,
        "why": clean_line(device.revoke_reason),
    }
