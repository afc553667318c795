"""The URLs, as in docs/guide.md and docs/integration.md."""

from django.contrib import admin
from django.urls import include, path

from mysite import api, hooks

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/hello/", api.Hello.as_view()),
    path("api/notes/", api.WriteNote.as_view()),
    path("hooks/event/", hooks.event),
    path("hooks/event-async/", hooks.event_async),
    path("hooks/event-class/", hooks.Event.as_view()),
    path("internal/report/", hooks.report),
    path("", include("amesh_django.urls")),
    path("", include("amesh_django.relay.urls")),
]
