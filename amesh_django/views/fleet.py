"""The addresses for hubs, and for the servers that follow them."""

from __future__ import annotations

import time

from django.http import HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from amesh_django.decorators import device_required
from amesh_django.fleet import receiving
from amesh_django.verification import DeviceHttpRequest
from authmesh.protocol.errors import RequestError
from authmesh.protocol.fleet.errors import MalformedFeed
from authmesh.protocol.fleet.feed import MAX_MESSAGE_BYTES, FeedMessage
from authmesh.protocol.header import parse_authorization

from .common import decided, json_body, refusal, without_transaction


@without_transaction
@never_cache
@device_required
@require_POST
def feed(request: DeviceHttpRequest) -> HttpResponse:
    """Apply what a hub says about devices, and return the signed answer."""
    try:
        message = FeedMessage.from_json(json_body(request, limit=MAX_MESSAGE_BYTES, malformed=MalformedFeed))
        nonce = parse_authorization(request.META["HTTP_AUTHORIZATION"]).nonce
        answer = decided(lambda: receiving.receive(message, signer=request.amesh, nonce=nonce, now=time.time()))
    except RequestError as error:
        return refusal(request, error)
    response = JsonResponse(answer.body, status=answer.status)
    if answer.retry_after:
        response.headers["Retry-After"] = str(answer.retry_after)
    return response
