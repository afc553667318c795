"""The journal in the admin: each change of a device, with its time and its author. Read-only; includes purged devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.models import AllowListChange, Device
from amesh_django.trust.database import database
from authmesh.protocol.display import clean, clean_line

from . import shown
from .history import is_genuine, row_of, sealed_or_none

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[AllowListChange]
else:
    ModelAdmin = admin.ModelAdmin


@admin.register(AllowListChange)
class ChangeAdmin(ModelAdmin):
    """The journal as a list without links. The page of a device shows the details of its changes."""

    list_display = ("shown_at", "shown_action", "shown_device", "shown_by", "genuine")
    list_display_links = None
    list_filter = ("action",)
    search_fields = ("device_id", "by")
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

    def get_queryset(self, request: HttpRequest) -> QuerySet[AllowListChange]:
        """Return the journal of the database that is written to: a replica may lag behind."""
        return AllowListChange.objects.using(database()).order_by("-id")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AllowListChange], search_term: str
    ) -> tuple[QuerySet[AllowListChange], bool]:
        """Search. Each word is in the name of the device or the author, or is the start of the device ID."""
        for word in search_term.split():
            named = Device.objects.using(database()).filter(friendly_name__icontains=word)
            one = Q(device_id__startswith=word) | Q(device_id__in=named.values("device_id")) | Q(by__icontains=word)
            queryset = queryset.filter(one)
        return queryset, False

    @admin.display(description=_("at"), ordering="id")
    def shown_at(self, change: AllowListChange) -> str:
        return shown.labeled(_("at"), shown.full_time(change.at))

    @admin.display(description=_("action"), ordering="action")
    def shown_action(self, change: AllowListChange) -> str:
        return shown.choice(change.get_action_display())

    @admin.display(description=_("device"), ordering="device_id")
    def shown_device(self, change: AllowListChange) -> SafeString:
        """Return the device ID, with the name that the device had; without one if amesh did not write the line."""
        row = row_of(change) if is_genuine(sealed_or_none(), change) else None
        name = clean(row.get("friendly_name", "")) if row is not None else ""
        return format_html("{} {}", name, shown.code(change.device_id))

    @admin.display(description=_("by"), ordering="by")
    def shown_by(self, change: AllowListChange) -> SafeString:
        return shown.labeled(_("by"), clean_line(change.by) or shown.NOTHING)

    @admin.display(description=_("written by amesh"))
    def genuine(self, change: AllowListChange) -> SafeString:
        words = {True: gettext("yes"), False: gettext("NO: forged"), None: gettext("cannot be verified")}
        return shown.labeled(_("written by amesh"), words[is_genuine(sealed_or_none(), change)])
