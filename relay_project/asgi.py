"""The ASGI application of the project: Django, the relay at ``/ws``, and the WebSocket of pairings in the admin."""

from __future__ import annotations

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_project.settings")
django_application = get_asgi_application()

from amesh_django.pairing.routing import websocket_urlpatterns  # noqa: E402 -- Django must be set up first
from amesh_django.relay.asgi import application as relay_application  # noqa: E402

#: The relay rejects every other address. For Channels, a route leads to an ASGI application; for Django, it leads to a view.
routes: list[Any] = [*websocket_urlpatterns, re_path(r"", relay_application)]  # type: ignore[arg-type]
websocket = URLRouter(routes)
application = ProtocolTypeRouter({"http": django_application, "websocket": websocket})
