"""The URLs of the project."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path, re_path
from django.views.decorators.cache import cache_control

from relay_project import views

# The style sheets of the admin, for the few people who use it. A web server in front may serve STATIC_URL instead.
static_files = cache_control(max_age=3600, public=True)(serve)

urlpatterns = [
    path("", views.front, name="front"),
    path("admin/", admin.site.urls),
    path("api/hello", views.Hello.as_view(), name="hello"),
    path("api/readings", views.Readings.as_view(), name="readings"),
    path("hooks/event", views.event, name="event"),
    path("protected/status", views.status, name="status"),
    path("", include("amesh_django.urls")),
    path("", include("amesh_django.relay.urls")),
    re_path(rf"^{settings.STATIC_URL.lstrip('/')}(?P<path>.+)$", static_files, {"insecure": True}),
]
