"""The URLs of the app: ``path("", include("amesh_django.urls"))`` adds the addresses for ``amesh doctor URL`` and for enrollment."""

from __future__ import annotations

from django.urls import path

from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.enrollment import ENROLL_PATH
from authmesh.protocol.rotation import ROTATE_PATH

from . import views

__all__ = ["app_name", "urlpatterns"]

app_name = "amesh_django"
urlpatterns = [
    path(CHECK_PATH.lstrip("/"), views.check, name="check"),
    path(f"amesh/{ENROLL_PATH}", views.enroll, name="enroll"),
    path(f"amesh/{ROTATE_PATH}", views.rotate, name="rotate"),
]
