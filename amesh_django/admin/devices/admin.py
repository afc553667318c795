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
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import current_list
from amesh_django.trust.database import database

from .. import mapping, shown
from ..adding import AddingAdmin
from ..approvals import ApprovingAdmin
from ..damaged import readable
from ..selecting import differing, without_other_names
from ..trouble import CHANGE_ERRORS, explain, trouble, verify_complete, verify_shown
from .filters import ExpiryFilter, LastSeenFilter, RoleFilter, StateFilter, UserFilter, search
from .page import DevicePage
from .verbs import VERBS

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
class DeviceAdmin(ApprovingAdmin, AddingAdmin, DevicePage):
    """The devices.

    Permissions: ``amesh.view_device`` to view devices, ``amesh.change_device`` to view and map them, and ``amesh.revoke_device``,
    in addition to one of these, to revoke them. :data:`.VERBS` has the permission of each other decision.
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
    actions = ("approve_selected", "deny_selected", "suspend_selected", "lift_selected", "revoke_selected")
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

    # --- the page of one device --------------------------------------------------------------------------------------

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Device | None = None,
    ) -> HttpResponse:
        """Return the page of a device, with what :meth:`panels` adds."""
        if obj is not None:
            context |= self.panels(request, obj)
        return super().render_change_form(request, context, add, change, form_url, obj)

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
                f"{self.opts.app_label}_{self.opts.model_name}_{name}" for name in ("change", "revoke", *VERBS)
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
