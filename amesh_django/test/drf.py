"""The test client of REST framework, with every request signed."""

from __future__ import annotations

try:
    from rest_framework.test import APIClient
except ModuleNotFoundError:
    raise ImportError(
        "AmeshAPIClient needs Django REST framework, which is not installed. Run: pip install 'amesh-django[drf]'"
    ) from None

from .client import SignedWSGIRequests


class AmeshAPIClient(SignedWSGIRequests, APIClient):
    """``rest_framework.test.APIClient``, every request signed by *device*: ``AmeshAPIClient(device).post("/x/", {}, "json")``."""
