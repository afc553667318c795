"""The middleware: protects path prefixes, sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from .conf import amesh_settings
from .verification.request import accept


def is_protected(path: str) -> bool:
    """Whether a path falls under ``AMESH["PROTECT"]`` and not under ``AMESH["EXEMPT"]``.

    PROTECT counts as a plain prefix, so that it protects too much rather than too little; EXEMPT ends at a slash.
    """
    if not path.startswith("/"):  # absolute or asterisk form: no path that PROTECT or EXEMPT could speak of
        return True
    settings = amesh_settings()
    if not any(path.startswith(prefix) or path == prefix.rstrip("/") for prefix in settings.PROTECT):
        return False
    if "/../" in f"{path}/" or "/./" in f"{path}/":  # what it leads to is not for us to guess
        return True
    return not any(path == exempt or path.startswith(exempt.rstrip("/") + "/") for exempt in settings.EXEMPT)


class AmeshMiddleware:
    """Lets in only signed requests of trusted devices, below the prefixes of ``AMESH["PROTECT"]``.

    Put it before any middleware that reads the body. ``request.amesh`` is the VerifiedDevice, or None on other paths.
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
        """Refuse, or go on."""
        if self.is_async:
            return self._acall(request)
        refused = self._check(request)
        return self._finish(request, refused if refused is not None else self.get_response(request))

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        refused = await sync_to_async(self._check)(request) if is_protected(request.path_info) else self._check(request)
        return self._finish(request, refused if refused is not None else await self.get_response(request))

    @staticmethod
    def _finish(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if getattr(request, "amesh", None) is not None:  # a cache must not hand this answer to somebody else
            patch_vary_headers(response, ("Authorization",))
        return response

    def _check(self, request: HttpRequest) -> HttpResponseBase | None:
        if not is_protected(request.path_info):
            request.amesh = None  # type: ignore[attr-defined]
            return None
        refused: HttpResponseBase | None = accept(request)
        return refused
