"""The views of ``/health`` and ``/metrics`` in a Django project."""

from __future__ import annotations

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from . import reports
from .hub.current import current_hub
from .reports import Report

_NEEDS_ASGI = Report(
    503,
    "text/plain; charset=utf-8",
    b"The relay needs ASGI. Serve this project with daphne, or run: manage.py amesh_relay\n",
)


@require_safe
async def health(request: HttpRequest) -> HttpResponse:
    """Return the state of the relay as JSON."""
    return _response(await reports.health(current_hub()) if isinstance(request, ASGIRequest) else _NEEDS_ASGI)


@require_safe
async def metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics of this process for Prometheus."""
    return _response(await reports.metrics(current_hub()) if isinstance(request, ASGIRequest) else _NEEDS_ASGI)


def _response(report: Report) -> HttpResponse:
    response = HttpResponse(report.body, status=report.status, content_type=report.content_type)
    response["Cache-Control"] = "no-store"
    return response
