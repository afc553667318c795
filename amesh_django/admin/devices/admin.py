"""Devices in the admin: read-only, because they are sealed, except that they can be revoked and mapped to a Django user."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AutocompleteSelect, ForeignKeyRawIdWidget
from django.contrib.auth import get_user_model
from django.db import models, transaction
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.states import ACTIVE
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from authmesh.protocol.allow_list import CONTROLLER, TARGET
from authmesh.protocol.display import clean_line

from .. import fleet, mapping, shown
from ..adding import AddingAdmin
from ..approvals import ApprovingAdmin
from ..damaged import readable
from ..selecting import differing, without_other_names
from ..trouble import CHANGE_ERRORS, explain, trouble, verify_complete, verify_shown
from .filters import ExpiryFilter, LastSeenFilter, RoleFilter, StateFilter, UserFilter, search
from .history import MAX_LINES, history, permissions
from .revoking import RevokingAdmin

_ROLES = {
    CONTROLLER: _("controller: it may authenticate to this server"),
    TARGET: _("target: this server may authenticate to it, but it may not authenticate to this server"),
}


# Maximum number of messages about the devices that act as a user who cannot be deleted.
_MAX_NAMED = 10


class VerifiedChangeList(ChangeList):
    """A page of the list. Its rows are compared with the verified list before they are shown."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        verify_complete()
        verify_shown(self.result_list)
        if found := differing(request):
            verify_shown(found)


@admin.register(Device)
class DeviceAdmin(ApprovingAdmin, AddingAdmin, RevokingAdmin):
    """The devices.

    Permissions: ``amesh.view_device`` to view devices, ``amesh.change_device`` to view and map them, and ``amesh.revoke_device``,
    in addition to one of these, to revoke them.
    """

    list_display = (
        "shown_name",
        "shown_id",
        "shown_role",
        "state",
        "added",
        "last_seen",
        "shown_added_by",
        "shown_user",
    )
    list_display_links = ("shown_name",)
    list_filter = (StateFilter, RoleFilter, "added_by", UserFilter, LastSeenFilter, ExpiryFilter, "added_at")
    list_per_page = 50
    ordering = ("-added_at", "-id")
    actions = ("revoke_selected",)
    search_help_text = _("Name, device ID, public key or username")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: devices are added by pairing or by a command."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """Return False: a revoked device keeps its row.

        The page that deletes a user asks this for each device that acts as the user. Django never deletes them with the user, but
        names them only if they could be deleted. So return True there, and say how to unmap the device.
        """
        match = request.resolver_match
        if obj is None or match is None or (match.url_name or "").startswith(f"{self.opts.app_label}_"):
            return False
        named = request.__dict__.setdefault("_amesh_unmap_first", set())
        if obj.pk not in named and len(named) < _MAX_NAMED:  # Django lists all of them
            named.add(obj.pk)
            messages.warning(request, mapping.unmap_first(obj, self.admin_site.name), fail_silently=True)
        return True

    def has_change_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """Return True if the user may map devices. A page does not offer what cannot be done now; a form that is sent says why."""
        if not super().has_change_permission(request, obj):
            return False
        return obj is None or request.method == "POST" or self._can_be_mapped(request, obj)

    def _can_be_mapped(self, request: HttpRequest, device: Device) -> bool:
        """Return False if the user may map no device, if the list is rejected, or if a revoked device has no user to remove."""
        if not mapping.may_map(request.user) or (shown.is_revoked(device) and device.user_id is None):
            return False
        if "_amesh_is_good" not in request.__dict__:  # Django asks several times
            request.__dict__["_amesh_is_good"] = trouble() is None
        return bool(request.__dict__["_amesh_is_good"])

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Return the permissions. On the index page, which asks for them, also show the warning about a broken seal."""
        perms = super().get_model_perms(request)
        match = request.resolver_match
        if perms.get("view") and match is not None and match.url_name == "index" and "admin" in match.app_names:
            self._warn_once(request)
        return perms

    def _warn_once(self, request: HttpRequest) -> None:
        # The index has no block for other apps, but it shows messages. It asks for the permissions more than once.
        if request.__dict__.setdefault("_amesh_warned", False):
            return
        request.__dict__["_amesh_warned"] = True
        found = trouble()
        if found is not None:
            page = reverse("admin:amesh_device_changelist", current_app=self.admin_site.name)
            link = format_html('<a href="{}">{}</a>', page, gettext("See what to do"))
            message = format_html("amesh: {} {} {}.", found.title, found.why, link)
            messages.error(request, message, fail_silently=True)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Device]:
        """Return the devices of the database that is written to: a replica that lags would show revoked devices as trusted."""
        return Device.objects.using(database()).select_related("user").order_by(*self.ordering)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list, whose rows are compared with the verified ones."""
        return VerifiedChangeList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Device | None:
        """Return the device, compared with the verified one."""
        device = super().get_object(request, object_id, from_field)
        if device is not None:
            verify_shown([device])
        else:
            verify_complete()
        return device

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the columns that are searched; :func:`.search` says how."""
        return ("friendly_name", "device_id", "public_key", "user")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Device], search_term: str
    ) -> tuple[QuerySet[Device], bool]:
        found = queryset.filter(search(search_term)) if search_term.strip() else queryset
        match = request.resolver_match
        if found is queryset and (match is None or match.url_name != "autocomplete"):
            return queryset, False  # the page verifies the rows that it shows
        return without_other_names(request, found), False

    # --- the list ----------------------------------------------------------------------------------------------------

    @admin.display(description=_("name"), ordering="friendly_name")
    def shown_name(self, device: Device) -> str:
        return shown.name(device)

    @admin.display(description=_("device ID"), ordering="device_id")
    def shown_id(self, device: Device) -> SafeString:
        return shown.code(device.device_id)

    @admin.display(description=_("role"), ordering="role")
    def shown_role(self, device: Device) -> str:
        return shown.choice(device.get_role_display())

    @admin.display(description=_("state"), ordering="revoked_at")
    def state(self, device: Device) -> SafeString:
        return shown.state(device)

    @admin.display(description=_("added"), ordering="added_at")
    def added(self, device: Device) -> SafeString:
        return shown.labeled(_("added"), shown.day(device.added_at))

    @admin.display(description=_("last seen"), ordering=F("activity__last_seen_at").asc(nulls_first=True))
    def last_seen(self, device: Device) -> SafeString:
        return shown.labeled(_("last seen"), shown.ago(getattr(device, "last_seen_at", None)))

    @admin.display(description=_("added by"), ordering="added_by")
    def shown_added_by(self, device: Device) -> SafeString:
        return shown.labeled(_("added by"), shown.choice(device.get_added_by_display()))

    @admin.display(description=_("mapped user"), ordering="user")
    def shown_user(self, device: Device) -> SafeString:
        name = clean_line(device.user.get_username()) if device.user is not None else shown.NOTHING
        return shown.labeled(_("mapped user"), name)

    # --- the page of one device --------------------------------------------------------------------------------------

    def get_fieldsets(self, request: HttpRequest, obj: Device | None = None) -> Any:
        """Return the sealed fields, and the mapped user."""
        trust = ["added_in_full", "shown_added_by_alone", "seen_in_full"]
        if obj is not None and shown.is_revoked(obj):
            trust += ["revoked_in_full", "revoked_by_whom", "why_revoked"]
        elif obj is not None and shown.details(obj):
            trust.append("state_in_full")
        return [
            (None, {"fields": ["shown_id", "shown_name", "state", "role_in_words", "shown_permissions", "shown_key"]}),
            (_("Trust"), {"fields": trust}),
            (_("Acts as"), {"fields": ["user"]}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Device | None = None) -> list[str]:
        """Return all fields except the mapped user."""
        fieldsets = self.get_fieldsets(request, obj)
        return [name for _title, options in fieldsets for name in options["fields"] if name != "user"]

    @admin.display(description=_("role"))
    def role_in_words(self, device: Device) -> str:
        """Return what the role means, as long as the device is trusted."""
        if shown.state_of(device) != ACTIVE or device.role not in _ROLES:
            return shown.choice(device.get_role_display())
        return str(_ROLES[device.role])

    @admin.display(description=_("permissions"))
    def shown_permissions(self, device: Device) -> str:
        return permissions(device.permissions_json)

    @admin.display(description=_("public key"))
    def shown_key(self, device: Device) -> SafeString:
        return shown.code(device.public_key)

    @admin.display(description=_("added"))
    def added_in_full(self, device: Device) -> str:
        return shown.full_time(device.added_at)

    @admin.display(description=_("added by"))
    def shown_added_by_alone(self, device: Device) -> str:
        return shown.choice(device.get_added_by_display())

    @admin.display(description=_("last seen"))
    def seen_in_full(self, device: Device) -> SafeString | str:
        moment = getattr(device, "last_seen_at", None)
        return format_html("{} ({})", shown.ago(moment), shown.full_time(moment)) if moment else shown.ago(None)

    @admin.display(description=_("state"))
    def state_in_full(self, device: Device) -> str:
        return shown.details(device)

    @admin.display(description=_("revoked"))
    def revoked_in_full(self, device: Device) -> str:
        return shown.full_time(device.revoked_at)

    @admin.display(description=_("revoked by"))
    def revoked_by_whom(self, device: Device) -> str:
        return clean_line(device.revoked_by) or shown.NOTHING

    @admin.display(description=_("reason"))
    def why_revoked(self, device: Device) -> str:
        return clean_line(device.revoke_reason) or shown.NOTHING

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Device | None = None,
    ) -> HttpResponse:
        """Return the page of a device, with its history and the button that revokes it."""
        if obj is not None:
            lines, older = history(obj.device_id)
            context |= {
                "amesh_history": lines,
                "amesh_history_max": MAX_LINES if older else None,
                "amesh_log": self._log_of(request, obj),
                "amesh_words": fleet.words_about(obj.public_key),
                "amesh_under_way": fleet.under_way(obj.revision),
                "amesh_may_revoke": not shown.is_revoked(obj) and self.has_revoke_permission(request, obj),
                "amesh_revision_field": mapping.REVISION_FIELD,
            }
        return super().render_change_form(request, context, add, change, form_url, obj)

    def _log_of(self, request: HttpRequest, device: Device) -> str:
        """Return the address of all events of a device, or an empty text if the user may not view the audit log."""
        if not request.user.has_perm("amesh.view_auditevent"):
            return ""
        page = self.page("changelist", model="auditevent")
        return f"{page}?{urlencode({'q': device.device_id})}"

    # --- mapping to a user -------------------------------------------------------------------------------------------

    def get_form(
        self, request: HttpRequest, obj: Device | None = None, change: bool = False, **kwargs: Any
    ) -> type[forms.ModelForm[Device]]:
        """Return the form, which knows the user who is logged in."""
        form = type("DeviceForm", (mapping.MappingForm,), {"actor": request.user})
        help_text = mapping.HELP if self.has_change_permission(request, obj) else ""
        return super().get_form(request, obj, change, **{"form": form, "help_texts": {"user": help_text}, **kwargs})

    def formfield_for_dbfield(
        self, db_field: models.Field[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> forms.Field | None:
        """Return the field for the user.

        It is a search box if the admin has one for users. Otherwise it takes a primary key. The widget of Django for that shows the
        name of the user whose key was sent, also to those who may not view users.
        """
        if not isinstance(db_field, models.ForeignKey):  # the mapped user is the only one
            return super().formfield_for_dbfield(db_field, request, **kwargs)
        if not mapping.may_map(request.user):
            kwargs["widget"] = forms.TextInput()
        elif self._may_search_users(request):
            kwargs["widget"] = AutocompleteSelect(db_field, self.admin_site)
        else:
            kwargs["widget"] = ForeignKeyRawIdWidget(db_field.remote_field, self.admin_site)
        return db_field.formfield(**kwargs)

    def _may_search_users(self, request: HttpRequest) -> bool:
        try:
            users = self.admin_site.get_model_admin(get_user_model())
        except NotRegistered:
            return False
        return bool(users.get_search_fields(request)) and users.has_view_permission(request)

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, without ATOMIC_REQUESTS: a change of the list is repeated on conflicts, each time in a new transaction."""
        urls = super().get_urls()
        alone = transaction.non_atomic_requests(using=database())
        for pattern in urls:
            if pattern.name in {
                f"{self.opts.app_label}_{self.opts.model_name}_{name}" for name in ("change", "revoke")
            }:
                pattern.callback = alone(pattern.callback)
        return urls

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Lead to the history on the page of the device. Django's own history has only the changes that were made in the admin."""
        return HttpResponseRedirect(f"{self.page('change', quote(object_id))}#amesh-history")

    @readable
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, extra_context)

    @readable
    @method_decorator(csrf_protect)
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Return the page of a device. A POST runs outside the transaction of the admin, for the same reason."""
        if request.method != "POST":
            return super().changeform_view(request, object_id, form_url, extra_context)
        try:
            view: Any = self._changeform_view  # type: ignore[attr-defined]
            response: HttpResponse = view(request, object_id, form_url, extra_context)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        return response

    def save_model(self, request: HttpRequest, obj: Device, form: Any, change: Any) -> None:
        """Map the device to the user. No other field is saved."""
        if "user" in form.changed_data:
            current_list().snapshot()  # also detects an older list that was restored, unlike the change
            DatabaseAllowList(by=self.actor(request)).map_user(obj.device_id, obj.user)
