"""The decorator for plain views, such as webhooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.utils.cache import patch_vary_headers

from .verification.request import accept


def _vary(response: Any) -> Any:
    """A cache must not hand this answer to somebody else."""
    patch_vary_headers(response, ("Authorization",))
    return response


def device_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """Let only signed requests of trusted devices reach *view*; it needs no CSRF token. Sync and async views.

    Refusals are those of protocol.md §3. In the view, ``request.amesh`` is the VerifiedDevice.
    """
    if iscoroutinefunction(view):

        @functools.wraps(view)
        async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            refused = await sync_to_async(accept)(request)
            return refused if refused is not None else _vary(await view(request, *args, **kwargs))
    else:

        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            refused = accept(request)
            return refused if refused is not None else _vary(view(request, *args, **kwargs))

    wrapper.csrf_exempt = True  # type: ignore[attr-defined]
    return wrapper
