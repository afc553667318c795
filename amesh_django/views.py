"""The check address: a device asks how this server knows it."""

from __future__ import annotations

import datetime as dt

from django.http import JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from authmesh.protocol.check import CheckAnswer

from .decorators import device_required
from .verification import DeviceHttpRequest

__all__ = ["check"]


# Outside of device_required: a cache must not keep a rejection either.
@never_cache
@device_required
@require_http_methods(["GET", "HEAD", "POST"])
def check(request: DeviceHttpRequest) -> JsonResponse:
    """Return how this server knows the device that signed the request: device ID, name, role and permissions."""
    device = request.amesh
    answer = CheckAnswer(
        device.device_id, device.friendly_name, device.role, device.permissions, dt.datetime.now(dt.UTC)
    )
    return JsonResponse(answer.to_json())
