"""The test client of REST framework, which signs every request."""

from __future__ import annotations

try:
    from rest_framework.test import APIClient
except ModuleNotFoundError:
    raise ImportError(
        "AmeshAPIClient needs Django REST framework, which is not installed. Run: pip install 'amesh-django[drf]'"
    ) from None

from .client import SignedWSGIRequests

__all__ = ["AmeshAPIClient"]


class AmeshAPIClient(SignedWSGIRequests, APIClient):
    """``rest_framework.test.APIClient`` with every request signed: ``AmeshAPIClient(device).post("/x/", {}, "json")``."""
