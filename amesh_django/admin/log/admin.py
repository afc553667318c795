"""The audit log in the admin: each event with its time and its author. Read-only; includes events about purged devices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.audit.reading import readable
from amesh_django.models import AuditEvent, Device
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database
from authmesh.protocol.display import clean, clean_line

from .. import shown
from ..base import Pages, base_class
from ..genuine import is_genuine, kind_of, sealed_or_none

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[AuditEvent]
else:
    ModelAdmin = base_class()


class EventList(ChangeList):
    """A page of the log. An event that was damaged so that it cannot be read has a line of its own."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        keys = list(self.result_list.values_list("pk", flat=True))
        self.result_list = [readable(pk, event) for pk, event in each_row(self.queryset.filter(pk__in=keys))]


@admin.register(AuditEvent)
class EventAdmin(Pages, ModelAdmin):
    """The audit log: a list, and a page for each event. The page of a device shows what its changes changed."""

    list_display = ("shown_at", "shown_kind", "shown_device", "shown_by", "genuine")
    fields = (*list_display, "shown_reason", "address", "seq", "revision", "shown_data", "shown_mac", "shown_link")
    readonly_fields = fields
    list_filter = ("kind",)
    search_fields = ("device_id", "actor")
    search_help_text = _("Name, device ID or author")
    ordering = ("-id",)
    list_per_page = 50
    show_full_result_count = False
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the list. Its title asks nobody to select an event."""
        return super().changelist_view(request, {"title": gettext("Audit log"), **(extra_context or {})})

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list, which shows damaged events, too."""
        return EventList

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEvent]:
        """Return the log of the database that is written to: a replica may lag behind."""
        return AuditEvent.objects.using(database()).order_by("-id")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> AuditEvent | None:
        """Return an event; one that says so for a row that was damaged so that it cannot be read."""
        if not object_id.isdecimal():
            return None
        found = dict(each_row(self.get_queryset(request).filter(pk=object_id)))
        return next((readable(pk, event) for pk, event in found.items()), None)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEvent], search_term: str
    ) -> tuple[QuerySet[AuditEvent], bool]:
        """Search. Each word is in the name of the device or the author, or is the start of the device ID."""
        for word in search_term.split():
            named = Device.objects.using(database()).filter(friendly_name__icontains=word)
            one = Q(device_id__startswith=word) | Q(device_id__in=named.values("device_id")) | Q(actor__icontains=word)
            queryset = queryset.filter(one)
        return queryset, False

    @admin.display(description=_("at"), ordering="id")
    def shown_at(self, event: AuditEvent) -> str:
        return shown.labeled(_("at"), shown.full_time(event.at))

    @admin.display(description=_("event"), ordering="kind")
    def shown_kind(self, event: AuditEvent) -> str:
        return kind_of(event)

    @admin.display(description=_("device"), ordering="device_id")
    def shown_device(self, event: AuditEvent) -> SafeString:
        """Return the device ID, with the name that the device had; without one if amesh did not write the event."""
        name = clean(event.subject) if event.subject and is_genuine(sealed_or_none(), event) else ""
        device = shown.code(event.device_id) if event.device_id else shown.NOTHING
        return format_html("{} {}", name, device)

    @admin.display(description=_("by"), ordering="actor")
    def shown_by(self, event: AuditEvent) -> SafeString:
        return shown.labeled(_("by"), clean_line(event.actor) or shown.NOTHING)

    @admin.display(description=_("reason"))
    def shown_reason(self, event: AuditEvent) -> str:
        return self._content(event, clean_line(event.text or event.reason_code))

    @admin.display(description=_("data"))
    def shown_data(self, event: AuditEvent) -> SafeString | str:
        """Return what the event stores beside its columns, as JSON; nothing if amesh did not write it."""
        found = json.dumps(data_of(event), indent=2, ensure_ascii=True)
        return self._content(event, format_html('<pre class="amesh-data" dir="ltr">{}</pre>', found))

    @admin.display(description=_("MAC"))
    def shown_mac(self, event: AuditEvent) -> SafeString:
        return shown.code(event.mac)

    @admin.display(description=_("link to the event before"))
    def shown_link(self, event: AuditEvent) -> SafeString | str:
        return shown.code(event.link) if event.link else gettext("none yet: it has no place in the log")

    @staticmethod
    def _content(event: AuditEvent, text: str) -> str:
        """Return a text of an event; none if amesh did not write the event."""
        return text or shown.NOTHING if is_genuine(sealed_or_none(), event) is not False else shown.NOTHING

    @admin.display(description=_("written by amesh"))
    def genuine(self, event: AuditEvent) -> SafeString:
        words = {True: gettext("yes"), False: gettext("NO: forged"), None: gettext("cannot be verified")}
        return shown.labeled(_("written by amesh"), words[is_genuine(sealed_or_none(), event)])
