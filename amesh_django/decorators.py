"""The decorator for plain Django views, such as webhooks."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest

from authmesh.protocol.scopes import required

from .verification.request import accept, mark

__all__ = ["device_required"]

_View = TypeVar("_View", bound=Callable[..., Any])


async def _mark_later(request: HttpRequest, response: Awaitable[Any]) -> Any:
    return mark(request, await response)


def _is_in_event_loop() -> bool:
    """Return True if an event loop runs in this thread. Django calls a view there only if it is async."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@overload
def device_required(view: _View) -> _View: ...


@overload
def device_required(*, scopes: Sequence[str]) -> Callable[[_View], _View]: ...


def device_required(view: Any = None, *, scopes: Sequence[str] = ()) -> Any:
    """Call a view only for signed requests of trusted devices. Other requests get the responses of protocol.md §3.

    The view needs no CSRF token. In the view, ``request.amesh`` is the :class:`~amesh_django.verification.VerifiedDevice`. Use it as
    ``@device_required`` or ``@device_required(scopes=["orders:read"])``.

    Args:
        view: a view function, sync or async. For a class-based view, sync or async, use
            ``@method_decorator(device_required, name="dispatch")``.
        scopes: scopes, all of which the device must have. A device that lacks one gets 403 ``insufficient_scope``.

    Raises:
        InvalidInput: *scopes* is not a list of scopes.
    """
    names = required(scopes)
    return _required(view, names) if view is not None else functools.partial(_required, scopes=names)


def _required(view: _View, scopes: Sequence[str]) -> _View:
    async def in_event_loop(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        rejection = await sync_to_async(accept)(request, scopes)
        if rejection is not None:
            return rejection
        response = view(request, *args, **kwargs)
        return mark(request, await response if inspect.isawaitable(response) else response)

    if iscoroutinefunction(view):
        # `async def`, because servers and method_decorator() ask whether the view is a coroutine function.
        @functools.wraps(view)
        async def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return await in_event_loop(request, *args, **kwargs)
    else:

        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if _is_in_event_loop():  # View.dispatch of a class with async handlers is a plain function
                return in_event_loop(request, *args, **kwargs)
            rejection = accept(request, scopes)
            if rejection is not None:
                return rejection  # may be awaited, because Django awaits what a class with async handlers returns
            response = view(request, *args, **kwargs)
            return _mark_later(request, response) if inspect.isawaitable(response) else mark(request, response)

    wrapper.csrf_exempt = True  # type: ignore[attr-defined]
    return cast("_View", wrapper)
