"""The page with the devices that wait, on which people approve and deny them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.csrf import csrf_protect

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.approvals.waiting import queue, waiting
from amesh_django.models import Device
from amesh_django.states import ACTIVE
from amesh_django.trust.database import database

from .. import shown
from ..base import Pages, base_class
from ..damaged import readable
from ..trouble import CHANGE_ERRORS, explain, trouble, verify_shown
from .coming import approvers, coming

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Device]
else:
    ModelAdmin = base_class()

#: Devices on one page of the queue, and in one change.
PER_PAGE = 100
# Maximum number of devices that a message names.
_MAX_NAMED = 10


class NoteForm(forms.Form):
    """Why devices are approved or denied. Which ones is in other fields."""

    note = forms.CharField(
        label=gettext_lazy("Note"),
        max_length=1000,
        required=False,
        strip=True,
        help_text=gettext_lazy("Optional. It is kept with each device: as its note, or as the reason of the denial."),
    )


class ApprovingAdmin(Pages, ModelAdmin):
    """The part of :class:`.DeviceAdmin` that approves and denies devices."""

    def has_approve_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """Return True if the user may both view devices and approve and deny them (``amesh.approve_device``)."""
        return self.has_view_permission(request, obj) and request.user.has_perm("amesh.approve_device")

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, the queue first: it looks like the page of a device."""
        alone = transaction.non_atomic_requests(using=database())
        view = alone(self.admin_site.admin_view(self.approvals_view))
        return [path("approvals/", view, name="amesh_device_approvals"), *super().get_urls()]

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Return the permissions. On the index page, which asks for them, also say how many devices wait."""
        match = request.resolver_match
        if match is not None and match.url_name == "index" and "admin" in match.app_names:
            if not request.__dict__.setdefault("_amesh_told", False) and self.has_approve_permission(request):
                request.__dict__["_amesh_told"] = True  # the index asks more than once
                with suppress(*CHANGE_ERRORS):
                    self._tell(request, waiting())
        return super().get_model_perms(request)

    def _tell(self, request: HttpRequest, count: int) -> None:
        if not count:
            return
        text = ngettext(
            "amesh: %(count)d device waits for approval.", "amesh: %(count)d devices wait for approval.", count
        )
        page = reverse("admin:amesh_device_approvals", current_app=self.admin_site.name)
        link = format_html('{} <a href="{}">{}</a>', text % {"count": count}, page, _("Approve or deny"))
        messages.info(request, link, fail_silently=True)

    @readable
    @method_decorator(csrf_protect)
    def approvals_view(self, request: HttpRequest) -> HttpResponse:
        """Show who waits (GET), or approve or deny some of them (POST)."""
        if not self.has_approve_permission(request):
            raise PermissionDenied
        form = NoteForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            self._decide(request, form.cleaned_data["note"])
            return HttpResponseRedirect(self.page("approvals"))
        page = Paginator(queue().select_related("user"), PER_PAGE).get_page(request.GET.get("p"))
        devices = list(page.object_list)
        verify_shown(devices)
        ways = coming(devices)
        context = {
            "form": form,
            "original": None,
            "page": page,
            "rows": [(device, shown.name(device), shown.code(device.device_id), ways[device.device_id],
                      shown.full_time(device.pending_since)) for device in devices],
            "listed": ",".join(device.device_id for device in devices),
            "may_decide": trouble() is None,
        }  # fmt: skip
        return self.answer(request, "approvals/queue.html", _("Approvals"), context)

    def _decide(self, request: HttpRequest, note: str) -> None:
        """Approve or deny the devices that were chosen, in one sealed change, without those that were decided meanwhile."""
        listed = request.POST.get("listed", "").replace("\x00", "").split(",") if request.POST.get("all") else []
        ids = [name.replace("\x00", "") for name in request.POST.getlist("device")]  # an error in PostgreSQL
        chosen = list(dict.fromkeys([*listed, *ids]))
        is_denial = request.POST.get("decision") == "deny"
        if not chosen or len(chosen) > PER_PAGE or request.POST.get("decision") not in ("approve", "deny"):
            text = _("Select at least one device, and at most %(max)d. Nothing was changed.") % {"max": PER_PAGE}
            self.message_user(request, text, messages.WARNING)
            return
        try:
            found = self._rows(chosen)
            ready = [name for name in chosen if name in found and not found[name].is_revoked]
            allow_list = DatabaseAllowList(by=self.actor(request))
            if is_denial:
                decided = allow_list.deny(ready, reason=note, waiting_only=True)
            else:
                decided = allow_list.approve(ready, note=note, waiting_only=True)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return
        done = [device for device in decided.devices if device.device_id in decided.changed]
        said = _("Denied. Note: %(note)s") if is_denial else _("Approved. Note: %(note)s")
        for device in done:
            self.log_change(request, device, said % {"note": note or shown.NOTHING})
        accepted = [device for device in done if device.state == ACTIVE]
        held = [device for device in done if not is_denial and device.state != ACTIVE]
        if is_denial and done:
            self.message_user(request, _("Denied: %(devices)s.") % {"devices": _named(done)}, messages.SUCCESS)
        if accepted:
            text = _("Approved: %(devices)s. Their requests are accepted now.")
            self.message_user(request, text % {"devices": _named(accepted)}, messages.SUCCESS)
        if held:
            text = _("Approved, but suspended or expired, so that their requests are rejected: %(devices)s.")
            self.message_user(request, text % {"devices": _named(held)}, messages.WARNING)
        others = [name for name in chosen if name not in decided.changed]
        for sentence in _decided_before(others, self._rows(others))[:_MAX_NAMED]:
            self.message_user(request, sentence, messages.WARNING)

    def _rows(self, ids: Sequence[str]) -> dict[str, Device]:
        rows = list(Device.objects.using(database()).filter(device_id__in=ids))
        verify_shown(rows)
        return {row.device_id: row for row in rows}


def _named(devices: Sequence[Device]) -> str:
    names = ", ".join(str(device) for device in devices[:_MAX_NAMED])
    more = len(devices) - _MAX_NAMED
    return names + (_(" and %(count)d more") % {"count": more} if more > 0 else "")


def _decided_before(ids: Sequence[str], rows: dict[str, Device]) -> list[str]:
    """Return a sentence for each device that was left as it is, because somebody came first."""
    if not ids:
        return []
    found, by = [], approvers(ids)
    for name in ids:
        device = rows.get(name)
        if device is None:
            found.append(_("A device is not in the list any more. Nothing was changed about it."))
        elif shown.is_revoked(device) or device.denied_at is not None:
            found.append(f"{device}: {shown.details(device)}")
        elif device.pending_since is None and by.get(name):
            text = _("%(device)s was already approved by %(person)s. Nothing was changed about it.")
            found.append(text % {"device": device, "person": by[name]})
        else:
            text = _("%(device)s does not wait for approval any more. Nothing was changed about it.")
            found.append(text % {"device": device})
    return found
