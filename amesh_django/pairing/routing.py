"""The WebSocket of the pairing page in a Channels project: ``URLRouter([*websocket_urlpatterns])``."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from .consumer import PairingConsumer

__all__ = ["websocket_urlpatterns"]

#: For Channels, a route leads to an ASGI application, and has a type of its own. For Django, it leads to a view. The address is that of
#: the page, with ``live`` at its end, wherever the admin is mounted.
websocket_urlpatterns: list[Any] = [
    re_path(r"^(?:.*/)?amesh/pairingsession/(?P<token>[\w-]{43})/live$", PairingConsumer.as_asgi()),  # type: ignore[arg-type]
]
