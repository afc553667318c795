"""The ASGI application of the project: Django, and the relay at ``/ws``."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "relay_project.settings")
django_application = get_asgi_application()

from amesh_django.relay.asgi import application as relay_application  # noqa: E402 -- Django must be set up first

application = ProtocolTypeRouter({"http": django_application, "websocket": relay_application})
