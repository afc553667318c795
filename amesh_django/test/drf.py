"""The test client of REST framework, with every request signed."""

from __future__ import annotations

from rest_framework.test import APIClient

from .client import SignedWSGIRequests


class AmeshAPIClient(SignedWSGIRequests, APIClient):
    """``rest_framework.test.APIClient``, every request signed by *device*: ``AmeshAPIClient(device).post("/x/", {}, "json")``."""
