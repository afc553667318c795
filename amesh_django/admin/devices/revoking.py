"""Revoking in the admin: the action of the list, the button on the page of a device, and the page that asks for the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.spelling import manage_py
from authmesh.protocol.errors import DeviceNotFound, Run

from .. import shown
from ..base import Pages, base_class
from ..damaged import readable
from ..fleet import under_way
from ..trouble import CHANGE_ERRORS, explain, html_of, verify_complete, verify_shown
from .forms import Reason
from .requests import requests_of

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Device]
else:
    ModelAdmin = base_class()

#: Maximum number of devices that are revoked at once: each is shown in full, and is a separate change of the list.
MAX_DEVICES = 200
# Maximum number of devices that a message names.
_MAX_NAMED = 10


@dataclasses.dataclass
class _Outcome:
    """The result of one request.

    Attributes:
        revoked: devices that were revoked.
        skipped: devices that were revoked already.
        error: message of the error that ended the request; empty if there was none.
        trouble: what is wrong with the list although devices were revoked; empty if nothing is.
    """

    revoked: list[Device] = dataclasses.field(default_factory=list)
    skipped: list[Device] = dataclasses.field(default_factory=list)
    error: str = ""
    trouble: str = ""


def listed(devices: Sequence[Device]) -> str:
    """Return the names of devices, for a message. If there are many, only of the first ones."""
    names = [str(device) for device in devices[:_MAX_NAMED]]
    more = len(devices) - len(names)
    return ", ".join(names) + (gettext(" and %(count)d more") % {"count": more} if more else "")


class RevokingAdmin(Pages, ModelAdmin):
    """The part of :class:`.DeviceAdmin` that revokes devices."""

    def has_revoke_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """Return True if the user may both view and revoke devices (``amesh.revoke_device``)."""
        name = f"{self.opts.app_label}.{get_permission_codename('revoke', self.opts)}"
        return self.has_view_permission(request, obj) and request.user.has_perm(name)

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, the page that asks for the reason first: it looks like the page of a device."""
        info = (self.opts.app_label, self.opts.model_name)
        view = self.admin_site.admin_view(self.revoke_view)
        return [path("revoke/", view, name="{}_{}_revoke".format(*info)), *super().get_urls()]

    @admin.action(permissions=["revoke"], description=_("Revoke selected devices"))
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse | None:
        """Return the page that asks for the reason, for the selected devices."""
        return self._ask(request, list(queryset[: MAX_DEVICES + 1]), Reason())

    @staticmethod
    def named_devices(request: HttpRequest) -> list[str]:
        """Return the device IDs that a request names: at most one more than are changed at once."""
        text = (request.POST if request.method == "POST" else request.GET).get("devices", "")
        return list(dict.fromkeys(text.replace("\x00", "").split(",")))[
            : MAX_DEVICES + 1
        ]  # NUL: an error in PostgreSQL

    @readable
    def revoke_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the reason (GET), or revoke (POST)."""
        if not self.has_revoke_permission(request):
            raise PermissionDenied
        posted, ids = request.method == "POST", self.named_devices(request)
        found = {device.device_id: device for device in self.get_queryset(request).filter(device_id__in=ids)}
        devices = [found[name] for name in ids if name in found]
        form = Reason(request.POST if posted else None)
        if not posted or not devices or len(ids) > MAX_DEVICES or not form.is_valid():
            return self._ask(request, devices, form, too_many=len(ids) > MAX_DEVICES)
        outcome = self._revoke(request, devices, form.cleaned_data["reason"])
        self._report(request, outcome)
        if outcome.error:
            done = {device.pk for device in (*outcome.revoked, *outcome.skipped)}
            return self._ask(request, [device for device in devices if device.pk not in done], form)
        if len(devices) == 1:
            return HttpResponseRedirect(self.page("change", devices[0].pk))
        return HttpResponseRedirect(self.page("changelist"))

    def _ask(
        self, request: HttpRequest, devices: Sequence[Device], form: Reason, *, too_many: bool = False
    ) -> HttpResponse:
        verify_shown(devices)
        if not devices:
            verify_complete()
        trusted = [device for device in devices if not shown.is_revoked(device)]
        if too_many or len(devices) > MAX_DEVICES:
            self.message_user(
                request,
                gettext("At most %(max)d devices can be revoked at once. Select fewer devices, or use %(command)s.")
                % {"max": MAX_DEVICES, "command": manage_py(Run("revoke"))},
                messages.ERROR,
            )
            return HttpResponseRedirect(self.page("changelist"))
        if not trusted:
            if devices:
                message = gettext("Already revoked: %(devices)s. Nothing was changed.") % {"devices": listed(devices)}
            else:
                message = gettext("No such device is in the allow list. Select other devices.")
            self.message_user(request, message, messages.WARNING)
            return HttpResponseRedirect(self.page("changelist"))
        if len(trusted) == 1:
            title = gettext("Revoke %(device)s") % {"device": trusted[0]}
        else:
            title = ngettext("Revoke %(count)d device", "Revoke %(count)d devices", len(trusted))
            title %= {"count": len(trusted)}
        context = {
            "form": form,
            "step": gettext("Revoke"),
            "trusted": trusted,
            "names": ",".join(device.device_id for device in trusted),
            "skipped": [device for device in devices if shown.is_revoked(device)],
            **(requests_of(trusted[0]) if len(trusted) == 1 else {}),
            "original": devices[0]
            if len(devices) == 1
            else None,  # this name, because unfold shows it in its breadcrumbs
        }
        return self.answer(request, "device/revoke.html", title, context)

    def _revoke(self, request: HttpRequest, devices: Sequence[Device], reason: str) -> _Outcome:
        """Revoke one device after the other. If one fails, those before it stay revoked."""
        outcome = _Outcome()
        try:
            allow_list = DatabaseAllowList(by=self.actor(request))
            for device in devices:
                try:
                    allow_list.revoke(device.device_id, reason=reason)
                except DeviceNotFound:  # another request has revoked it meanwhile
                    outcome.skipped.append(device)
                else:
                    outcome.revoked.append(device)
                    if allow_list.trouble is not None:
                        outcome.trouble = html_of(allow_list.trouble, self.admin_site.name)
                    self.log_change(request, device, gettext("Revoked. Reason: %(reason)s") % {"reason": reason})
        except CHANGE_ERRORS as error:
            outcome.error = explain(error, self.admin_site.name)
        return outcome

    def _report(self, request: HttpRequest, outcome: _Outcome) -> None:
        if outcome.revoked:
            done = ngettext(
                "Revoked: %(devices)s. All its further requests will be rejected.",
                "Revoked: %(devices)s. All their further requests will be rejected.",
                len(outcome.revoked),
            ) % {"devices": listed(outcome.revoked)}
            self.message_user(request, f"{done} {under_way()}".rstrip(), messages.SUCCESS)
        if outcome.skipped:
            skipped = gettext("Already revoked, skipped: %(devices)s.") % {"devices": listed(outcome.skipped)}
            self.message_user(request, skipped, messages.WARNING)
        if outcome.trouble:
            self.message_user(request, outcome.trouble, messages.ERROR)
        if outcome.error:
            self.message_user(request, outcome.error, messages.ERROR)
