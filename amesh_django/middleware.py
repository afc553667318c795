"""The middleware: protects path prefixes, sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings as django_settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve
from django.utils.module_loading import import_string

from authmesh.protocol.enrollment import ENROLL_PATH
from authmesh.protocol.fleet.feed import LIST_PATH, PULL_PATH

from .conf import amesh_settings
from .verification.request import accept, mark, routed

__all__ = ["AmeshMiddleware", "has_middleware", "is_protected", "required_scopes"]

#: Ends of the paths of views that have a proof of their own, or need none.
_UNSIGNED = tuple(f"/{path}" for path in (ENROLL_PATH, PULL_PATH, LIST_PATH))

View = TypeVar("View", bound=Callable[..., Any])


def unsigned(view: View) -> View:
    """Let requests to a view of this app through without a signature, because the view has a proof of its own."""
    view.amesh_unsigned = True  # type: ignore[attr-defined]
    return view


def _is_unsigned(path: str) -> bool:
    """Return True if a path leads to an :func:`unsigned` view. Only this app has such views."""
    if not path.endswith(_UNSIGNED):
        return False
    try:
        return getattr(resolve(path).func, "amesh_unsigned", False) is True
    except Resolver404:
        return False


def is_protected(path: str) -> bool:
    """Return True if a path is under ``AMESH["PROTECT"]`` and not under ``AMESH["EXEMPT"]``.

    Three addresses are never protected: at one, machines enroll, which have no trusted key yet and prove that they have a token; at one, servers
    ask their hub, which accepts other devices than this middleware; and one has the signed list of a hub, which is for everyone. PROTECT is compared as a plain prefix, so that it protects too much rather than too little. EXEMPT ends at a slash.

    Args:
        path: ``request.path_info``.
    """
    if not path.startswith("/"):  # absolute or asterisk form: PROTECT and EXEMPT do not apply to it
        return True
    settings = amesh_settings()
    if not any(_is_below(path, prefix) for prefix, _scopes in settings.protected):
        return False
    if _has_dots(path):
        return True
    if any(path == exempt or path.startswith(exempt.rstrip("/") + "/") for exempt in settings.EXEMPT):
        return False
    return not _is_unsigned(path)


def required_scopes(path: str) -> tuple[str, ...]:
    """Return the scopes that ``AMESH["PROTECT"]`` requires for a path that is protected: those of every entry above it.

    If it is not certain where the path leads, the scopes of all entries are required.

    Args:
        path: ``request.path_info``.
    """
    uncertain = not path.startswith("/") or _has_dots(path)
    found = (scopes for prefix, scopes in amesh_settings().protected if uncertain or _is_below(path, prefix))
    return tuple(dict.fromkeys(scope for scopes in found for scope in scopes))


def _is_below(path: str, prefix: str) -> bool:
    return path.startswith(prefix) or path == prefix.rstrip("/")


def _has_dots(path: str) -> bool:
    """Return True if a path has a part ``.`` or ``..``: where it leads depends on who resolves it."""
    return "/../" in f"{path}/" or "/./" in f"{path}/"


def has_middleware() -> bool:
    """Return True if MIDDLEWARE has the middleware, or a subclass of it."""
    for name in django_settings.MIDDLEWARE:
        with suppress(ImportError):  # Django itself reports it
            found = import_string(name)
            if isinstance(found, type) and issubclass(found, AmeshMiddleware):
                return True
    return False


class AmeshMiddleware:
    """Accepts only signed requests of trusted devices, below the prefixes of ``AMESH["PROTECT"]``.

    In MIDDLEWARE, put it before every middleware that reads the body. ``request.amesh`` is the
    :class:`~amesh_django.verification.VerifiedDevice`, or None on paths that are not protected.

    Args:
        get_response: the next middleware or the view.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        amesh_settings()  # a server with wrong settings does not start
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Return the rejection of the request, or the response of the view."""
        if self.is_async:
            return self._acall(request)
        rejection = self._check(request)
        if rejection is not None:
            return self._finish(request, rejection)
        try:
            return self._finish(request, self.get_response(request))
        finally:
            routed(request)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        needs_thread = is_protected(request.path_info)
        rejection = await sync_to_async(self._check)(request) if needs_thread else self._check(request)
        if rejection is not None:
            return self._finish(request, rejection)
        try:
            return self._finish(request, await self.get_response(request))
        finally:  # also if the client is gone
            routed(request)

    @staticmethod
    def _finish(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if getattr(request, "amesh", None) is not None:
            mark(request, response)
        return response

    def _check(self, request: HttpRequest) -> HttpResponseBase | None:
        if not is_protected(request.path_info):
            request.amesh = None  # type: ignore[attr-defined]
            return None
        return accept(request, required_scopes(request.path_info), is_routed_later=True)
