"""The URLs of the app, for ``path("", include("amesh_django.urls"))``.

``amesh doctor URL`` requests the check address, machines that enroll or replace their key two others, a hub the address of the feed, a
load balancer the addresses of health, and Prometheus the metrics.
"""

from __future__ import annotations

from django.urls import path

from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.enrollment import ENROLL_PATH
from authmesh.protocol.fleet.feed import FEED_PATH, LIST_PATH, PULL_PATH
from authmesh.protocol.rotation import ROTATE_PATH

from . import views

__all__ = ["app_name", "urlpatterns"]

app_name = "amesh_django"
urlpatterns = [
    path(CHECK_PATH.lstrip("/"), views.check, name="check"),
    path(f"amesh/{ENROLL_PATH}", views.enroll, name="enroll"),
    path(f"amesh/{ROTATE_PATH}", views.rotate, name="rotate"),
    path(f"amesh/{FEED_PATH}", views.feed, name="feed"),
    path(f"amesh/{PULL_PATH}", views.pull, name="pull"),
    path(f"amesh/{LIST_PATH}", views.revocations, name="revocations"),
    path("amesh/health", views.ready, name="ready"),
    path("amesh/health/live", views.live, name="live"),
    path("amesh/metrics", views.metrics, name="metrics"),
]
