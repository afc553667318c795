"""The addresses for devices: am I known, enroll me, replace my key."""

from __future__ import annotations

import datetime as dt
import time

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST

from amesh_django.decorators import device_required
from amesh_django.enrollment import answering, rotating
from amesh_django.middleware import unsigned
from amesh_django.trust.owner import own_identity
from amesh_django.verification import DeviceHttpRequest
from authmesh.protocol.check import CheckAnswer
from authmesh.protocol.errors import RequestError

from .common import decided, json_body, refusal, without_transaction


# Outside of device_required: a cache must not keep a rejection either.
@without_transaction
@never_cache
@device_required
@require_http_methods(["GET", "HEAD", "POST"])
def check(request: DeviceHttpRequest) -> JsonResponse:
    """Return how this server knows the device that signed the request: device ID, name, role and permissions."""
    device, own = request.amesh, own_identity()
    answer = CheckAnswer(
        device.device_id,
        device.friendly_name,
        device.role,
        device.permissions,
        dt.datetime.now(dt.UTC),
        own.device_id if own is not None else None,
    )
    return JsonResponse(answer.to_json())


@without_transaction
@unsigned
@never_cache
@csrf_exempt
@require_POST
def enroll(request: HttpRequest) -> HttpResponse:
    """Enroll the machine that proves that it has an enrollment token. The request is not signed as others are."""
    try:
        value = json_body(request)
        answer = decided(lambda: answering.enroll(value, address=request.META.get("REMOTE_ADDR", ""), now=time.time()))
    except RequestError as error:
        return refusal(request, error)
    return JsonResponse(answer, status=201)


@without_transaction
@never_cache
@device_required
@require_POST
def rotate(request: DeviceHttpRequest) -> HttpResponse:
    """Replace the key of the device that signed the request by a new one. Both are valid for a while."""
    try:
        value = json_body(request)
        answer = decided(lambda: rotating.rotate(value, public_key=request.amesh.public_key, now=time.time()))
    except RequestError as error:
        return refusal(request, error)
    return JsonResponse(answer)
