"""Checks of what protects the project's views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLResolver, get_resolver

from amesh_django import conf
from amesh_django.middleware import has_middleware

#: Maximum number of views that a message names.
_SHOWN_VIEWS = 10


@register(Tags.security)
def check_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that ``AMESH["PROTECT"]`` has an effect.

    - ``amesh.W019``: it is set, and MIDDLEWARE does not have the middleware.
    """
    if conf.problems() or not {"PROTECT", "EXEMPT"} & getattr(django_settings, "AMESH", {}).keys() or has_middleware():
        return []
    message = (
        "AMESH names paths to protect, and MIDDLEWARE does not have AmeshMiddleware: nothing protects these paths."
    )
    hint = 'Add "amesh_django.middleware.AmeshMiddleware" to MIDDLEWARE, or remove PROTECT and EXEMPT from AMESH.'
    return [Warning(message, hint=hint, id="amesh.W019")]


@register(Tags.security)
def check_default_authentication(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Name the views of REST framework that accept devices although they do not name devices.

    - ``amesh.W010``: the class is in DEFAULT_AUTHENTICATION_CLASSES, and DEVICES_ARE_USERS is True.
    """
    if conf.problems() or not conf.amesh_settings().DEVICES_ARE_USERS:
        return []
    try:
        views = sorted(set(_open_to_devices(get_resolver().url_patterns)))
    except (ImportError, ImproperlyConfigured):
        return []  # no REST framework; Django's own checks report URLs that cannot be loaded
    if not views:
        return []
    more = len(views) - _SHOWN_VIEWS
    shown = ", ".join(views[:_SHOWN_VIEWS]) + (f", and {more} more" if more > 0 else "")
    return [
        Warning(
            "AmeshAuthentication is in DEFAULT_AUTHENTICATION_CLASSES and AMESH['DEVICES_ARE_USERS'] is True, so every "
            f"trusted device counts as logged in for these views, which do not name devices: {shown}.",
            hint="Set AMESH['DEVICES_ARE_USERS'] to False, and add IsTrustedDevice or HasDevicePermission to the views for "
            "devices.",
            id="amesh.W010",
        )
    ]


def _open_to_devices(patterns: Sequence[Any]) -> Iterator[str]:
    """Yield the views that use the default authentication, with our class in it, and whose permissions ask for a login.

    Raises:
        ImportError: REST framework is not installed.
    """
    from rest_framework.permissions import (
        DjangoModelPermissions,
        IsAdminUser,
        IsAuthenticated,
        IsAuthenticatedOrReadOnly,
    )
    from rest_framework.views import APIView

    from amesh_django.drf import AmeshAuthentication, IsTrustedDevice

    login = (IsAuthenticated, IsAuthenticatedOrReadOnly, DjangoModelPermissions)
    default = APIView.authentication_classes
    if not any(issubclass(found, AmeshAuthentication) for found in default):
        return
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _open_to_devices(pattern.url_patterns)
            continue
        view = getattr(pattern.callback, "cls", None)
        if not isinstance(view, type) or not issubclass(view, APIView):
            continue
        options = getattr(pattern.callback, "initkwargs", {})
        if options.get("authentication_classes", view.authentication_classes) is not default:
            continue  # the view chose its classes itself
        permissions = options.get("permission_classes", view.permission_classes)
        parts = [part for permission in permissions for part in _parts(permission)]
        if (
            any(issubclass(part, login) for part in parts)
            and not any(issubclass(part, IsTrustedDevice) for part in parts)
            and IsAdminUser not in permissions
        ):
            yield f"{view.__module__}.{view.__name__}"


def _parts(permission: Any) -> Iterator[type]:
    """Yield the classes that a member of ``permission_classes``, such as ``A | B``, consists of."""
    operands = [getattr(permission, name) for name in ("op1_class", "op2_class") if hasattr(permission, name)]
    for operand in operands:
        yield from _parts(operand)
    if isinstance(permission, type):
        yield permission
