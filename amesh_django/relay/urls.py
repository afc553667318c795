"""``/health`` and ``/metrics`` in a Django project: ``path("", include("amesh_django.relay.urls"))``."""

from __future__ import annotations

from django.urls import path

from . import views

__all__ = ["app_name", "urlpatterns"]

app_name = "amesh_relay"
urlpatterns = [path("health", views.health, name="health"), path("metrics", views.metrics, name="metrics")]
