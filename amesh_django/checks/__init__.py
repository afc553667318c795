"""System checks. Their IDs (``amesh.E001``, ``amesh.W001``, …) are stable, and docs/settings.md lists them.

Importing this folder registers the checks, which :mod:`amesh_django.apps` does. To add a check, add it to the module of its subject, and to the
imports below:

- :mod:`.installed`: the versions and libraries that are installed.
- :mod:`.settings`: the values of ``AMESH``.
- :mod:`.nonces`: the cache for nonces.
- :mod:`.database`: the database with the allow list.
- :mod:`.directory`: the device directory of this server.
- :mod:`.fleet`: what carries changes to the servers of a hub.
- :mod:`.hubs`: the hubs that this server follows.
- :mod:`.views`: what protects the project's views.
"""

from .database import check_connections, check_seal_secret, check_triggers
from .directory import check_directory
from .fleet import check_fleet
from .hubs import check_hubs
from .installed import SUPPORTED_DJANGO, check_django, check_metrics
from .nonces import check_nonce_cache, check_nonce_eviction
from .settings import check_settings
from .views import check_default_authentication, check_middleware

__all__ = [
    "SUPPORTED_DJANGO",
    "check_connections",
    "check_default_authentication",
    "check_directory",
    "check_django",
    "check_fleet",
    "check_hubs",
    "check_metrics",
    "check_middleware",
    "check_nonce_cache",
    "check_nonce_eviction",
    "check_seal_secret",
    "check_settings",
    "check_triggers",
]
