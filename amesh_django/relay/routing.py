"""The relay in a Channels project: ``URLRouter([*websocket_urlpatterns])``."""

from __future__ import annotations

from typing import Any

from django.urls import path

from .consumer import RelayConsumer

__all__ = ["websocket_urlpatterns"]

#: For Channels, a route leads to an ASGI application, and has a type of its own. For Django, it leads to a view.
websocket_urlpatterns: list[Any] = [path("ws", RelayConsumer.as_asgi())]  # type: ignore[arg-type]
