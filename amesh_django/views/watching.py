"""The addresses for what watches a server: load balancers and Prometheus."""

from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from amesh_django import metrics as prometheus
from amesh_django.conf import amesh_settings
from amesh_django.health import is_ready

from .common import without_transaction


@without_transaction
@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Return 200 while this process answers at all."""
    return JsonResponse({"status": "ok"})


@without_transaction
@never_cache
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Return 200 if this process can verify requests, or else 503, so that a load balancer uses other processes."""
    if is_ready():
        return JsonResponse({"status": "ok"})
    return JsonResponse({"status": "unavailable"}, status=503)


@without_transaction
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
