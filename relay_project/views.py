"""A front page, and three ways to protect a view: authentication class of REST framework, decorator, middleware."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, HasDeviceScope, IsTrustedDevice
from amesh_django.verification import VerifiedDevice


@require_GET
def front(request: HttpRequest) -> HttpResponse:
    """Show the front page."""
    return render(request, "relay_project/front.html")


class Hello(APIView):
    """Greets the device that signed the request. Protected by the authentication class of REST framework."""

    authentication_classes = (AmeshAuthentication,)
    permission_classes = (IsTrustedDevice,)

    def get(self, request: Request) -> Response:
        """Return the name, ID and permissions of the device."""
        return Response(_greeting(_device(request)))

    def post(self, request: Request) -> Response:
        """Return the same, and the data that was sent."""
        return Response({**_greeting(_device(request)), "received": request.data})


class Readings(APIView):
    """Each method asks for a scope of its own."""

    authentication_classes = (AmeshAuthentication,)

    def get_permissions(self) -> list[Any]:
        """Return what the method needs."""
        return [HasDeviceScope("readings:read" if self.request.method in SAFE_METHODS else "readings:write")()]

    def get(self, request: Request) -> Response:
        """Return the scopes of the device."""
        device = _device(request)
        return Response({**_greeting(device), "scopes": sorted(device.scopes)})

    post = get


@device_required
@require_POST
def event(request: HttpRequest) -> JsonResponse:
    """Accept a webhook. Protected by the decorator; needs no CSRF token."""
    return JsonResponse({**_greeting(_device(request)), "bytes": len(request.body)})


@require_GET
def status(request: HttpRequest) -> JsonResponse:
    """Return the status. A plain view; the middleware protects its path, see AMESH["PROTECT"]."""
    return JsonResponse({**_greeting(_device(request)), "status": "ok"})


def _device(request: HttpRequest | Request) -> VerifiedDevice:
    device: VerifiedDevice = request.amesh  # type: ignore[union-attr]
    return device


def _greeting(device: VerifiedDevice) -> dict[str, Any]:
    return {
        "hello": device.friendly_name,
        "device_id": device.device_id,
        "role": device.role,
        "permissions": dict(device.permissions),
        "verified_at": device.verified_at,
    }
