"""The URLs of a project with an admin site of its own, and none of Django's."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.urls import include, path

site = AdminSite(name="ops")
for model, found in admin.site._registry.items():
    site.register(model, type(found))

urlpatterns = [path("ops/", site.urls), path("", include("amesh_django.urls"))]
