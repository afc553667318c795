"""The decorator for plain Django views, such as webhooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.utils.cache import patch_vary_headers

from .verification.request import accept

__all__ = ["device_required"]


def _vary(response: Any) -> Any:
    """Make caches keep the response for this device only."""
    patch_vary_headers(response, ("Authorization",))
    return response


def device_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """Call a view only for signed requests of trusted devices. Other requests get the responses of protocol.md §3.

    The view needs no CSRF token. In the view, ``request.amesh`` is the :class:`~amesh_django.verification.VerifiedDevice`.

    Args:
        view: a view function, sync or async.
    """
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            rejection = await sync_to_async(accept)(request)
            return rejection if rejection is not None else _vary(await view(request, *args, **kwargs))
    else:

        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            rejection = accept(request)
            return rejection if rejection is not None else _vary(view(request, *args, **kwargs))

    wrapper.csrf_exempt = True  # type: ignore[attr-defined]
    return wrapper
