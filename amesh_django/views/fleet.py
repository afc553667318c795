"""The addresses for hubs, and for the servers that follow them, among them the only one at which a target may sign (SECURITY.md)."""

from __future__ import annotations

import time

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotModified, JsonResponse
from django.utils.cache import patch_cache_control
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from amesh_django.decorators import device_required
from amesh_django.fleet import pulling, receiving, signed_list
from amesh_django.middleware import unsigned
from amesh_django.models import Server
from amesh_django.trust.database import database
from amesh_django.verification import DeviceHttpRequest
from amesh_django.verification.request import authenticate_target, error_response
from authmesh.protocol.errors import AmeshError, RequestError
from authmesh.protocol.fleet.errors import MalformedFeed
from authmesh.protocol.fleet.feed import MAX_MESSAGE_BYTES, SIGNATURE_HEADER, FeedMessage
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


@without_transaction
@unsigned
@never_cache
@csrf_exempt
@require_POST
def pull(request: HttpRequest) -> HttpResponse:
    """Answer a server of this hub that asks for changes. It is a target here, so the request has no user, and no ``request.amesh``."""
    try:
        asker = authenticate_target(request)
    except RequestError as error:
        return error_response(error)
    try:
        value = json_body(request, malformed=MalformedFeed)
        nonce = parse_authorization(request.META["HTTP_AUTHORIZATION"]).nonce
        body, signature = decided(lambda: pulling.answer(value, asker=asker, nonce=nonce, now=time.time()))
    except RequestError as error:
        return refusal(request, error)
    return HttpResponse(body, content_type="application/json", headers={SIGNATURE_HEADER: signature})


#: Seconds for which one signed list is good enough for all who fetch it.
_LIST_SECONDS = 5.0


@without_transaction
@unsigned
@require_safe
def revocations(request: HttpRequest) -> HttpResponse:
    """Return the signed list of this hub to anyone: it says which keys were revoked, by their hashes.

    Caches may keep it, and must ask each time whether there is a newer one.

    Raises:
        Http404: this server is no hub.
    """
    try:
        if not decided(lambda: Server.objects.using(database()).exists()):
            raise Http404
        text = decided(lambda: signed_list.build(time.time(), max_age=_LIST_SECONDS))
    except RequestError as error:
        return refusal(request, error)
    except AmeshError:  # there is no list yet
        raise Http404 from None
    tag = signed_list.tag_of(text)
    if tag in (one.strip() for one in request.headers.get("If-None-Match", "").split(",")):
        response: HttpResponse = HttpResponseNotModified()
    else:
        response = HttpResponse(text, content_type=signed_list.MEDIA_TYPE)
    response.headers["ETag"] = tag
    patch_cache_control(response, public=True, no_cache=True)
    return response
