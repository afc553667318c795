"""A relay in the project, as in docs/relay.md."""

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

from amesh_django.relay.routing import websocket_urlpatterns

application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter([*websocket_urlpatterns])})
