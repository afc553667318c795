"""The audit log in the admin: one sentence a line, the newest first, and a page for each event. Read-only; includes purged devices."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.audit.reading import UNREADABLE_KIND, readable
from amesh_django.models import AuditEvent
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database
from authmesh.protocol.display import clean, clean_line

from .. import shown
from ..genuine import is_genuine, kind_of, sealed_or_none
from . import linking
from .choosing import MAX_DEVICES, LogForm
from .exports import FORMS
from .paging import page
from .telling import told
from .verifying import VerifyingAdmin, state_of_log

#: Parameters that choose a page, not events.
_OF_PAGES = ("before", "after")


@admin.register(AuditEvent)
class EventAdmin(VerifyingAdmin):
    """The audit log: a list, and a page for each event. The page of a device shows what its changes changed.

    Permissions: ``amesh.view_auditevent`` to view it, and ``amesh.export_auditevent``, in addition, to export and verify it.
    """

    fields = (
        *("shown_at", "shown_kind", "shown_device", "shown_by", "genuine", "shown_reason", "shown_address", "seq"),
        *("revision", "shown_data", "shown_mac", "shown_link"),
    )
    readonly_fields = fields
    ordering = ("-at", "-id")
    actions = None
    change_form_template = "admin/amesh/log/event.html"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEvent]:
        """Return the log of the database that is written to: a replica may lag behind."""
        return AuditEvent.objects.using(database()).order_by(*self.ordering)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> AuditEvent | None:
        """Return an event; one that says so for a row that was damaged so that it cannot be read."""
        if not (object_id.isascii() and object_id.isdecimal() and len(object_id) < 20):
            return None
        found = dict(each_row(self.get_queryset(request).filter(pk=object_id)))
        return next((readable(pk, event) for pk, event in found.items()), None)

    # --- the list ----------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return a page of the log. Its parameters are the fields of :class:`.LogForm`, and those of :func:`.page`."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        form = LogForm(request.GET)
        found = page(form.chosen(), request.GET)
        given = {name: value for name in form.fields if (value := form.data.get(name))}
        may_export = self.has_export_permission(request)
        context = {
            "form": form,
            "lines": self._lines(request, found.events),
            "is_filtered": bool(given),
            "too_many": MAX_DEVICES if form.has_more else None,
            "newest": self._query(given) if any(name in request.GET for name in _OF_PAGES) else "",
            "newer": self._query(given, found.newer) if found.newer else "",
            "older": self._query(given, found.older) if found.older else "",
            "exports": [(label, self._export(name, given)) for name, (label, _end) in FORMS.items()]
            if may_export
            else (),
            "verify": self.page("verify") if may_export else "",
            "amesh_verified": state_of_log(),
            **(extra_context or {}),
        }
        return self.answer(request, "log/list.html", gettext("Audit log"), context)

    def _lines(self, request: HttpRequest, events: list[AuditEvent]) -> list[dict[str, Any]]:
        """Return what the page shows of each event."""
        sealed = sealed_or_none()
        found = [(event, is_genuine(sealed, event)) for event in events]
        keys = linking.keys_of(event for event, genuine in found if genuine is not False)
        pages, names = linking.addresses(request, keys, self.page), linking.names_of(keys)
        lines = []
        for event, genuine in found:
            words = told(event, genuine, names)
            lines.append(
                {
                    "at": shown.full_time(event.at) if event.kind != UNREADABLE_KIND else shown.NOTHING,
                    "page": self.page("change", event.pk),
                    "sentence": words.html(pages),
                    "code": shown.code(event.device_id) if event.device_id else "",
                    "is_warning": words.is_warning,
                    "is_unverified": genuine is None,
                }
            )
        return lines

    def _query(self, given: dict[str, str], of_page: tuple[str, int] | None = None) -> str:
        """Return the address of a page of the log with these filters."""
        return f"{self.page('changelist')}?{urlencode([*given.items(), *([of_page] if of_page else [])])}"

    def _export(self, form: str, given: dict[str, str]) -> str:
        return f"{self.page('export', form)}?{urlencode(given)}".rstrip("?")

    # --- the page of one event ---------------------------------------------------------------------------------------

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Return the page of an event, whose title is its sentence."""
        return super().changeform_view(request, object_id, form_url, {"subtitle": None, **(extra_context or {})})

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add the sentence, what it leads to, and the other events of the same device, person, and kind."""
        event = context.get("original")
        if isinstance(event, AuditEvent):
            genuine = is_genuine(sealed_or_none(), event)
            keys = linking.keys_of([event] if genuine is not False else [])
            words = told(event, genuine, linking.names_of(keys))
            context |= {
                "title": words.text,
                "amesh_sentence": words.html(linking.addresses(request, keys, self.page)),
                "amesh_others": self._others(event),
                "amesh_is_warning": words.is_warning,
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def _others(self, event: AuditEvent) -> list[tuple[str, str]]:
        """Return the labels and addresses of pages with similar events."""
        if event.kind == UNREADABLE_KIND:
            return []
        found = [
            (gettext("All events about this device"), "device", event.device_id),
            (gettext("All events by %(by)s") % {"by": clean_line(event.actor)}, "by", event.actor),
            (
                gettext("All events of this kind: %(kind)s") % {"kind": kind_of(event)},
                "kind",
                event.kind if event.kind in AuditEvent.Kind.values else "",
            ),
        ]
        return [(label, self._query({name: value})) for label, name, value in found if value]

    @admin.display(description=_("at"))
    def shown_at(self, event: AuditEvent) -> str:
        return shown.full_time(event.at) if event.kind != UNREADABLE_KIND else shown.NOTHING

    @admin.display(description=_("event"))
    def shown_kind(self, event: AuditEvent) -> str:
        return kind_of(event)

    @admin.display(description=_("device"))
    def shown_device(self, event: AuditEvent) -> SafeString:
        """Return the device ID, with the name that the device had; without one if amesh did not write the event."""
        name = clean(event.subject) if event.subject and is_genuine(sealed_or_none(), event) else ""
        device = shown.code(event.device_id) if event.device_id else shown.NOTHING
        return format_html("{} {}", name, device)

    @admin.display(description=_("by"))
    def shown_by(self, event: AuditEvent) -> str:
        return clean_line(event.actor) or shown.NOTHING

    @admin.display(description=_("address"))
    def shown_address(self, event: AuditEvent) -> str:
        return self._content(event, clean_line(event.address))

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
    def genuine(self, event: AuditEvent) -> str:
        words = {True: gettext("yes"), False: gettext("NO: forged"), None: gettext("cannot be verified")}
        return words[is_genuine(sealed_or_none(), event)]
