"""What a view reads: the device that signed its request, with its type."""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from .private import django_request
from .types import VerifiedDevice


class DeviceHttpRequest(HttpRequest):
    """The request in a view that only devices may call. For annotations: requests are not objects of this class.

    Attributes:
        amesh: the device that signed the request.
    """

    amesh: VerifiedDevice


def signing_device(request: HttpRequest) -> VerifiedDevice | None:
    """Return the device that signed a request that was verified, or None if there is none.

    Args:
        request: a request of Django or of REST framework.
    """
    for found in (getattr(request, "auth", None), getattr(django_request(request), "amesh", None)):
        if isinstance(found, VerifiedDevice):
            return found
    return None


def verified_device(request: HttpRequest) -> VerifiedDevice:
    """Return the device that signed a request. Use it in views that other requests may reach, too, or if you check types.

    It verifies nothing: the middleware, the decorator, or the class of REST framework did so before.

    Args:
        request: a request of Django or of REST framework.

    Raises:
        PermissionDenied: no device signed the request, or nothing verified it. Django and REST framework answer that with 403.
    """
    device = signing_device(request)
    if device is None:
        raise PermissionDenied("A trusted device must sign this request.")
    return device
