"""The model admin of groups of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.paginator import Paginator
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.csrf import csrf_protect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import MAX_ROWS, Grant
from amesh_django.models import Device, DeviceGroup
from amesh_django.models.names import names_in
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.verified import KnownDevice, Snapshot
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

from .. import shown
from ..base import Pages, base_class
from ..devices.forms import Reason
from ..fleet import under_way
from ..trouble import CHANGE_ERRORS, explain, html_of, trouble, verify_shown
from .form import GroupForm, MembersForm, lacking, refusal

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[DeviceGroup]
else:
    ModelAdmin = base_class()

#: Members on one page.
PER_PAGE = 100


@admin.register(DeviceGroup)
class GroupAdmin(Pages, ModelAdmin):
    """The groups. Their scopes and members are those of the verified list, not of the rows.

    Permissions: those that view devices show groups, ``amesh.grant_device`` in addition changes them, and ``amesh.revoke_device`` in
    addition revokes all members.
    """

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return True if the user may view devices."""
        return request.user.has_perm("amesh.view_device") or request.user.has_perm("amesh.change_device")

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may view devices."""
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may both view devices and grant (``amesh.grant_device``)."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.grant_device")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return True as for adding a group."""
        return self.has_add_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a group is removed on a page of its own."""
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may both view and revoke devices."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.revoke_device")

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs. No page of Django's own is among them: they would write rows without the seal."""

        def page(route: str, view: Callable[..., HttpResponse], name: str) -> URLPattern:
            alone = transaction.non_atomic_requests(using=database())
            return path(route, alone(self.admin_site.admin_view(view)), name=f"amesh_devicegroup_{name}")

        return [
            page("", self.groups_view, "changelist"),
            page("add/", self.make_view, "add"),
            page("<str:name>/change/", self.group_view, "change"),
            page("<str:name>/remove/", self.remove_view, "remove"),
            page("<str:name>/revoke/", self.revoke_view, "revoke"),
        ]

    # --- pages -------------------------------------------------------------------------------------------------------

    def groups_view(self, request: HttpRequest) -> HttpResponse:
        """Show all groups, with the number of members of each."""
        self._check(self.has_view_permission(request))
        found = _snapshot()
        rows = []
        if found is not None:
            numbers: dict[str, int] = {}
            for known in [*found.by_key.values()]:
                for name in _groups_of(known) if known.groups_json and not known.revoked else ():
                    numbers[name] = numbers.get(name, 0) + 1
            rows = [
                (name, ", ".join(sorted(scopes)) or shown.NOTHING, numbers.get(name, 0))
                for name, scopes in sorted(found.groups.scopes.items())
            ]
        context = {
            "rows": rows,
            "original": None,
            "is_known": found is not None,
            "may_add": found is not None and self.has_add_permission(request),
        }
        return self.answer(request, "devicegroup/list.html", _("Groups of devices"), context)

    @method_decorator(csrf_protect)
    def make_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for name and scopes (GET), or make a group (POST)."""
        self._check(self.has_add_permission(request))
        form = GroupForm(request.user, request.POST if request.method == "POST" else None)
        found = _snapshot()
        if found is not None and form.is_valid():
            name = form.cleaned_data["name"]
            if name not in found.groups.scopes:
                given = form.cleaned_data.get("scopes", ())
                text = _("The group %(group)s was made.") % {"group": name}
                done = self._changed(request, lambda people: people.put_group(name, given), text)
                return HttpResponseRedirect(self.page("change", name) if done else self.page("changelist"))
            form.add_error("name", _("There is a group of this name already."))
        context = {"form": form, "original": None, "may_change": found is not None}
        return self.answer(request, "devicegroup/form.html", _("Make a group"), context)

    @method_decorator(csrf_protect)
    def group_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show scopes and members (GET), or change the scopes, add members, or remove some (POST)."""
        self._check(self.has_view_permission(request))
        found = self._found(name)
        if found is None:
            return HttpResponseRedirect(self.page("changelist"))
        scopes, members = found
        may_change = self.has_change_permission(request) and trouble() is None
        posted = request.POST.get("what", "") if request.method == "POST" else ""
        if request.method == "POST":
            self._check(self.has_change_permission(request))
        form = GroupForm(request.user, request.POST if posted == "scopes" else None, name=name, scopes=scopes)
        joining = MembersForm(request.POST if posted == "join" else None)
        if posted and may_change and self._is_done(request, name, scopes, posted, form, joining):
            return HttpResponseRedirect(self.page("change", name))
        page = Paginator(members, PER_PAGE).get_page(request.GET.get("p"))
        context = {
            "form": form,
            "joining": joining,
            "name": name,
            "original": None,
            "scopes": ", ".join(sorted(scopes)) or shown.NOTHING,
            "page": page,
            "rows": [
                (device, shown.name(device), shown.code(device.device_id), shown.state(device))
                for device in _devices([known.pk for known in page.object_list])
            ],
            "may_change": may_change,
            "may_revoke": bool(members) and self.has_revoke_permission(request),
        }
        title = _("Group %(group)s") % {"group": clean_line(name)}
        return self.answer(request, "devicegroup/group.html", title, context)

    def _is_done(
        self,
        request: HttpRequest,
        name: str,
        scopes: frozenset[str],
        what: str,
        form: GroupForm,
        joining: MembersForm,
    ) -> bool:
        """Carry out what was sent. Return False if the page must be shown again, with what is wrong."""
        if what == "scopes" and form.is_valid():
            wanted = form.cleaned_data.get("scopes", ())
            text = _("The scopes were saved. Each member has them from its next request on.")
            self._changed(request, lambda people: people.put_group(name, wanted), text)
            return True
        if what == "join" and joining.is_valid():
            missing = lacking(request.user, scopes)
            if missing:
                joining.add_error("devices", refusal(missing))
                return False
            ids = joining.cleaned_data["devices"]
            text = ngettext("%(count)d device was added.", "%(count)d devices were added.", len(ids))
            given = Grant(groups=[name])
            self._changed(request, lambda people: people.grant(ids, given), text % {"count": len(ids)})
            return True
        if what == "leave":
            ids = list(dict.fromkeys(one.replace("\x00", "") for one in request.POST.getlist("device")))[:PER_PAGE]
            if not ids:
                self.message_user(request, _("Select at least one member. Nothing was changed."), messages.WARNING)
                return True
            text = ngettext("%(count)d device was removed.", "%(count)d devices were removed.", len(ids))
            taken = Grant(groups=[name])
            self._changed(request, lambda people: people.grant(ids, Grant(), taken=taken), text % {"count": len(ids)})
            return True
        return False

    @method_decorator(csrf_protect)
    def remove_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask (GET), or remove the group, and take it from its members (POST)."""
        self._check(self.has_change_permission(request))
        found = self._found(name)
        if found is None:
            return HttpResponseRedirect(self.page("changelist"))
        _scopes, members = found
        if request.method == "POST":
            text = _("The group %(group)s was removed. Its members lost its scopes.") % {"group": name}
            done = self._changed(request, lambda people: people.remove_group(name), text)
            return HttpResponseRedirect(self.page("changelist") if done else self.page("change", name))
        title = _("Remove the group %(group)s") % {"group": clean_line(name)}
        context = {"name": name, "count": len(members), "original": None, "may_change": trouble() is None}
        return self.answer(request, "devicegroup/remove.html", title, context)

    @method_decorator(csrf_protect)
    def revoke_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Show the members and ask for the reason (GET), or revoke those that the page has shown (POST)."""
        self._check(self.has_revoke_permission(request))
        found = self._found(name)
        if found is None:
            return HttpResponseRedirect(self.page("changelist"))
        _scopes, members = found
        form = Reason(request.POST if request.method == "POST" else None)
        ids = [known.device_id for known in members]
        if request.method == "POST" and form.is_valid():
            seen = set(request.POST.get("listed", "").split(","))
            chosen = [one for one in ids if one in seen][:MAX_ROWS]
            self._revoke(request, chosen, form.cleaned_data["reason"])
            return HttpResponseRedirect(self.page("revoke" if len(ids) > len(chosen) else "change", name))
        first = ids[:MAX_ROWS]
        devices = _devices([known.pk for known in members[:MAX_ROWS]])
        context = {
            "form": form,
            "name": name,
            "original": None,
            "rows": [(shown.name(one), shown.code(one.device_id), shown.state(one)) for one in devices],
            "listed": ",".join(first),
            "more": len(ids) - len(first),
        }
        title = _("Revoke the members of %(group)s") % {"group": clean_line(name)}
        return self.answer(request, "devicegroup/revoke.html", title, context)

    def _revoke(self, request: HttpRequest, ids: list[str], reason: str) -> None:
        if not ids:
            self.message_user(
                request, _("None of these devices is a member any more. Nothing was changed."), messages.WARNING
            )
            return
        try:
            people = DatabaseAllowList(by=self.actor(request))
            done = people.revoke_all(ids, reason=reason)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return
        text = ngettext(
            "%(count)d device was revoked. All its further requests will be rejected.",
            "%(count)d devices were revoked. All their further requests will be rejected.",
            len(done),
        ) % {"count": len(done)}
        self.message_user(request, f"{text} {under_way()}".rstrip(), messages.SUCCESS)
        if people.trouble is not None:
            self.message_user(request, html_of(people.trouble, self.admin_site.name), messages.ERROR)

    # --- helpers -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _check(is_allowed: bool) -> None:
        if not is_allowed:
            raise PermissionDenied

    @staticmethod
    def _found(name: str) -> tuple[frozenset[str], list[KnownDevice]] | None:
        """Return the scopes of a group and its members that are not revoked, as the verified list has them; None if there is none.

        Raises:
            Http404: there is no such group.
        """
        found = _snapshot()
        if found is None:
            return None
        if name not in found.groups.scopes:
            raise Http404
        members = [
            known
            for known in [*found.by_key.values()]
            if known.groups_json and name in _groups_of(known) and not known.revoked
        ]
        return found.groups.scopes[name], sorted(members, key=lambda known: known.pk)

    def _changed(self, request: HttpRequest, work: Callable[[DatabaseAllowList], Any], text: str) -> bool:
        """Make a change, and say that it was made, or why not."""
        try:
            work(DatabaseAllowList(by=self.actor(request)))
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return False
        self.message_user(request, text, messages.SUCCESS)
        return True


def _snapshot() -> Snapshot | None:
    """Return the verified list, or None if there is none: then the banner says so."""
    try:
        return current_list().snapshot()
    except (AmeshError, ImproperlyConfigured):
        return None


def _groups_of(known: KnownDevice) -> list[str]:
    return names_in(known.groups_json)


def _devices(pks: list[int]) -> list[Device]:
    """Return the rows of some devices, verified, in this order."""
    rows = {row.pk: row for row in Device.objects.using(database()).filter(pk__in=pks)}
    found = [rows[pk] for pk in pks if pk in rows]
    verify_shown(found)
    return found
