"""The addresses of the app: for devices that ask, enroll, or replace their key, for load balancers, and for Prometheus."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from authmesh.protocol.check import CheckAnswer
from authmesh.protocol.enrollment_errors import MalformedEnrollment
from authmesh.protocol.errors import AllowListIntegrityFailure, AllowListUnavailable, PayloadTooLarge, RequestError

from . import metrics as prometheus
from .conf import amesh_settings
from .decorators import device_required
from .enrollment import answering, rotating
from .health import is_ready
from .middleware import unsigned
from .trust.owner import own_identity
from .verification import DeviceHttpRequest
from .verification.request import error_response, refused

__all__ = ["check", "enroll", "live", "metrics", "ready", "rotate"]

_View = TypeVar("_View", bound=Callable[..., Any])

#: Largest body of a request to enroll or to rotate, in bytes.
MAX_BODY_BYTES = 16 * 1024
#: Longest Content-Length that is taken for a number.
_MAX_DIGITS = 9


def _without_transaction(view: _View) -> _View:
    """Call a view without the transactions of ATOMIC_REQUESTS. They need a database that runs, and a view that reports that it does not.

    A change of the allow list has a transaction of its own, and is tried again.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


# Outside of device_required: a cache must not keep a rejection either.
@_without_transaction
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


@_without_transaction
@unsigned
@never_cache
@csrf_exempt
@require_POST
def enroll(request: HttpRequest) -> HttpResponse:
    """Enroll the machine that proves that it has an enrollment token. The request is not signed as others are."""
    try:
        value = _json(request)
        answer = _decided(lambda: answering.enroll(value, address=request.META.get("REMOTE_ADDR", ""), now=time.time()))
    except RequestError as error:
        return _refused(request, error)
    return JsonResponse(answer, status=201)


@_without_transaction
@never_cache
@device_required
@require_POST
def rotate(request: DeviceHttpRequest) -> HttpResponse:
    """Replace the key of the device that signed the request by a new one. Both are valid for a while."""
    try:
        value = _json(request)
        answer = _decided(lambda: rotating.rotate(value, public_key=request.amesh.public_key, now=time.time()))
    except RequestError as error:
        return _refused(request, error)
    return JsonResponse(answer)


def _refused(request: HttpRequest, error: RequestError) -> HttpResponse:
    """Log why a request is refused, and return the response. It is a plain one: device_required would wait for one that can be awaited."""
    refused(request, error)
    rejection = error_response(error)
    return HttpResponse(rejection.content, status=rejection.status_code, headers=dict(rejection.items()))


def _decided(work: Any) -> Any:
    """Return the result of *work*. If the settings or the database prevent a decision, the request is rejected.

    Raises:
        AllowListIntegrityFailure: the settings are wrong.
        AllowListUnavailable: the database is down.
    """
    try:
        return work()
    except ImproperlyConfigured as error:
        raise AllowListIntegrityFailure(str(error), reason="improperly_configured") from error
    except (DatabaseError, InterfaceError) as error:
        raise AllowListUnavailable(
            "The database cannot be used, so it is not known whether the list was changed.",
            hint="Check that the database runs.",
            reason=f"database_error ({type(error).__name__})",
        ) from error


def _json(request: HttpRequest) -> Any:
    """Return the JSON value of a small body.

    Raises:
        PayloadTooLarge: the body is not small.
        MalformedEnrollment: it is not JSON, or cannot be read.
    """
    declared = request.META.get("CONTENT_LENGTH") or "0"
    if not declared.isdecimal() or len(declared) > _MAX_DIGITS or int(declared) > MAX_BODY_BYTES:
        raise PayloadTooLarge()
    try:
        body = request.read(MAX_BODY_BYTES + 1)  # a body without a declared length may be of any size
    except Exception as error:  # each server raises errors of its own
        raise MalformedEnrollment(detail=f"the body cannot be read: {type(error).__name__}") from None
    if len(body) > MAX_BODY_BYTES:
        raise PayloadTooLarge()
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedEnrollment() from None


@_without_transaction
@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Return 200 while this process answers at all."""
    return JsonResponse({"status": "ok"})


@_without_transaction
@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Return 200 if this process can verify requests, or else 503, so that a load balancer uses other processes."""
    if is_ready():
        return JsonResponse({"status": "ok"})
    return JsonResponse({"status": "unavailable"}, status=503)


@_without_transaction
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics for Prometheus.

    Raises:
        Http404: ``AMESH["METRICS"]`` is not True.
    """
    if not amesh_settings().METRICS:
        raise Http404
    try:
        body, content_type = prometheus.page()
    except ImportError:
        text = "Metrics are not installed. Run: pip install 'amesh-django[metrics]', and restart the server.\n"
        return HttpResponse(text, status=404, content_type="text/plain; charset=utf-8")
    return HttpResponse(body, content_type=content_type)
