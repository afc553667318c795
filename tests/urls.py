"""The URLs of the tests' project."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("amesh_django.urls")),
    path("", include("tests.verification.wire_views")),
]
