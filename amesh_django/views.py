"""The addresses of the app: a device asks how this server knows it, a load balancer whether it is ready, Prometheus for numbers."""

from __future__ import annotations

import datetime as dt

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from authmesh.protocol.check import CheckAnswer

from . import metrics as prometheus
from .conf import amesh_settings
from .decorators import device_required
from .health import is_ready
from .verification import DeviceHttpRequest

__all__ = ["check", "live", "metrics", "ready"]


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


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Return 200 while this process answers at all."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Return 200 if this process can verify requests, or else 503, so that a load balancer uses other processes."""
    if is_ready():
        return JsonResponse({"status": "ok"})
    return JsonResponse({"status": "unavailable"}, status=503)


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
