"""What a device has requested lately: what would break without it, and what was refused."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _

from amesh_django.models import Device
from amesh_django.usage import reading
from authmesh.protocol.display import clean_line


def requests_of(device: Device) -> dict[str, Any]:
    """Return the requests of the last day, for a template: those that were accepted by path, and those that were refused by reason."""
    routes = [(clean_line(route) or _("other paths"), times) for route, times in reading.routes(device.device_id)]
    refused = [(clean_line(reason), times) for reason, times in reading.refusals(device.device_id)]
    return {"amesh_routes": routes, "amesh_refusals": refused}
