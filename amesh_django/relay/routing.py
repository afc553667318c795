"""The relay in a Channels project: ``URLRouter([*websocket_urlpatterns])``."""

from __future__ import annotations

from django.urls import path

from .consumer import RelayConsumer

__all__ = ["websocket_urlpatterns"]

websocket_urlpatterns = [path("ws", RelayConsumer.as_asgi())]  # type: ignore[arg-type]  # Django expects a view
