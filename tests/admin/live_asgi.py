"""An ASGI application with the admin, the relay, and the WebSocket of pairings, as docs/relay.md describes it."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django_application = get_asgi_application()

from amesh_django.pairing import routing as pairing  # noqa: E402 -- Django must be set up first
from amesh_django.relay import routing as relay  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(django_application),
        "websocket": URLRouter([*relay.websocket_urlpatterns, *pairing.websocket_urlpatterns]),
    }
)
