"""The test client of REST framework, which signs every request."""

from __future__ import annotations

from rest_framework.test import APIClient

from .client import SignedWSGIRequests

__all__ = ["AmeshAPIClient"]


class AmeshAPIClient(SignedWSGIRequests, APIClient):
    """``rest_framework.test.APIClient`` with every request signed: ``AmeshAPIClient(device).post("/x/", {}, "json")``."""
