"""Exporting the log from the admin: what the filters show, as a file that is made while it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import (
    Http404,
    HttpRequest,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from amesh_django.audit import exporting
from amesh_django.audit.recording import record
from amesh_django.models import AuditEvent

from ..base import Pages, base_class
from .choosing import LogForm

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[AuditEvent]
else:
    ModelAdmin = base_class()

#: Name of a form, in the address → its label, and the ending of the file.
FORMS: Final = {"csv": (_("CSV"), "csv"), "json": (_("JSON lines"), "jsonl"), "ocsf": (_("OCSF"), "ocsf.jsonl")}


class ExportingAdmin(Pages, ModelAdmin):
    """The part of :class:`.EventAdmin` that exports events."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.export_view)
        return [path("export/<str:form>/", view, name="amesh_auditevent_export"), *super().get_urls()]

    def has_export_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may view the log, and export and verify it (``amesh.export_auditevent``)."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.export_auditevent")

    def export_view(self, request: HttpRequest, form: str) -> HttpResponseBase:
        """Return the events that the filters show as a file (POST). The audit log has an event about it, which the file does not have.

        A link must not make a person export, or write its filters into the log in their name.
        """
        if not self.has_export_permission(request):
            raise PermissionDenied
        if form not in FORMS:
            raise Http404
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        chosen = LogForm(request.GET)
        rows = chosen.chosen()
        if not chosen.is_valid():  # the page of the log says what is wrong
            return HttpResponseRedirect(f"{self.page('changelist')}?{request.GET.urlencode()}")
        lines = exporting.parts(rows, form)
        given = {name: value for name in chosen.fields if (value := chosen.data.get(name))}
        data = {"form": form, **({"filters": urlencode(given)} if given else {})}
        record(AuditEvent.Kind.EXPORT, by=self.actor(request), subject="audit log", data=data)
        is_async = isinstance(request, ASGIRequest)
        response = StreamingHttpResponse(
            _asynchronously(lines) if is_async else lines, content_type=exporting.FORMS[form][0]
        )
        name = f"audit-log-{timezone.now():%Y-%m-%d}.{FORMS[form][1]}"
        response["Content-Disposition"] = f'attachment; filename="{name}"'
        response["Cache-Control"] = "no-store"
        return response


async def _asynchronously(lines: Iterator[str]) -> AsyncIterator[str]:
    """Yield what an iterator yields. Without this, Django reads all of it before it sends the first byte under ASGI."""
    following: Any = sync_to_async(next)
    while (part := await following(lines, None)) is not None:
        yield part
