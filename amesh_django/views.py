"""The view that the app offers: a device asks whether this server knows it."""

from __future__ import annotations

import datetime as dt

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from authmesh.protocol.check import CheckAnswer

from .decorators import device_required
from .verification import VerifiedDevice


# Outermost but for the header: a refusal must not be kept by a cache either.
@never_cache
@device_required
@require_http_methods(["GET", "HEAD", "POST"])
def check(request: HttpRequest) -> JsonResponse:
    """Tell a device that signed this request how it is known here. What is refused gets the answers of protocol.md §3."""
    device: VerifiedDevice = request.amesh  # type: ignore[attr-defined]
    answer = CheckAnswer(
        device.device_id, device.friendly_name, device.role, device.permissions, dt.datetime.now(dt.UTC)
    )
    return JsonResponse(answer.to_json())
