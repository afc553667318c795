"""The template tags of the admin: the banner for a list that cannot be verified, and a device in full."""

from __future__ import annotations

from typing import Any

from django import template

from amesh_django.approvals.waiting import waiting
from amesh_django.models import Device
from authmesh.protocol.display import clean_line

from . import shown
from .start import start
from .trouble import trouble

register = template.Library()


@register.inclusion_tag("admin/amesh/seal_banner.html")
def amesh_seal_banner() -> dict[str, Any]:
    """Show why all signed requests are rejected and how to fix it; nothing if the list matches its seal."""
    return {"trouble": trouble(in_full=True)}


@register.inclusion_tag("admin/amesh/device/card.html")
def amesh_device_card(device: Device) -> dict[str, Any]:
    """Show a device in full, with its texts made harmless."""
    return {
        "name": shown.name(device),
        "state": shown.state(device),
        "code": shown.code(device.device_id),
        "role": shown.choice(device.get_role_display()),
        "added": shown.day(device.added_at),
        "added_by": shown.choice(device.get_added_by_display()),
        "seen": shown.ago(getattr(device, "last_seen_at", None)),
        "user": clean_line(device.user.get_username()) if device.user is not None else "",
        "details": shown.details(device),
    }


@register.inclusion_tag("admin/amesh/device/links.html", takes_context=True)
def amesh_device_links(context: Any) -> dict[str, Any]:
    """Show the links above the list of devices that the person who is logged in may follow."""
    request = context["request"]
    may_approve = request.user.has_perm("amesh.approve_device")
    return {
        "request": request,
        "may_enroll": request.user.has_perm("amesh.enroll_device"),
        "may_approve": may_approve,
        "waiting": waiting() if may_approve else 0,
    }


@register.inclusion_tag("admin/amesh/start.html", takes_context=True)
def amesh_start(context: Any) -> dict[str, Any]:
    """Show the start page of amesh to the person who is logged in: what each may view."""
    request = context["request"]
    site = request.resolver_match.namespace if request.resolver_match is not None else "admin"
    return {"start": start(request, site)}
