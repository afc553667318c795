"""Revoking in the admin: an action on the list, a button on a device's page, and the page between that asks why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as text
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import snapshot
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import DeviceNotFound

from . import shown
from .trouble import REFUSALS, explain

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Device]
else:
    ModelAdmin = admin.ModelAdmin

#: How many devices are revoked in one go: each is shown in full, and is a change of the list of its own.
MOST = 200
# How many ids a message lists.
_LISTED = 10


class ReasonForm(forms.Form):
    """Why. The devices travel in a field of their own, by the ids that the page shows."""

    reason = forms.CharField(
        label=_("Reason"),
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
        help_text=_(
            "Kept with the device and in the journal, for whoever looks at it later: what happened, who asked."
        ),
        error_messages={"required": _("Say why: whoever finds this device revoked will want to know.")},
    )

    def clean_reason(self) -> str:
        """Something that can be seen."""
        reason: str = self.cleaned_data["reason"]
        if not clean_line(reason).strip():
            raise ValidationError(self.fields["reason"].error_messages["required"], code="required")
        return reason


@dataclasses.dataclass
class _Outcome:
    """What became of the devices of one request."""

    revoked: list[Device] = dataclasses.field(default_factory=list)
    skipped: list[Device] = dataclasses.field(default_factory=list)
    refusal: str = ""


def _listed(devices: Sequence[Device]) -> str:
    names = [f"{clean_line(device.device_id)} ({shown.name(device)})" for device in devices[:_LISTED]]
    more = len(devices) - len(names)
    return ", ".join(names) + (text(" and %(count)d more") % {"count": more} if more else "")


class RevokingAdmin(ModelAdmin):
    """The part of :class:`DeviceAdmin` that revokes. Needs the permissions to view and to revoke devices."""

    def has_revoke_permission(self, request: HttpRequest, obj: Device | None = None) -> bool:
        """``amesh.revoke_device``, and the permission to see what is revoked."""
        name = f"{self.opts.app_label}.{get_permission_codename('revoke', self.opts)}"
        return self.has_view_permission(request, obj) and request.user.has_perm(name)

    def get_urls(self) -> list[URLPattern]:
        """The page that asks why, before the pages of single devices."""
        info = (self.opts.app_label, self.opts.model_name)
        view = self.admin_site.admin_view(self.revoke_view)
        return [path("revoke/", view, name="{}_{}_revoke".format(*info)), *super().get_urls()]

    @admin.action(permissions=["revoke"], description=_("Revoke selected devices"))
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse | None:
        """The page that asks why, for the devices that were ticked."""
        return self._ask(request, list(queryset[: MOST + 1]), ReasonForm())

    def revoke_view(self, request: HttpRequest) -> HttpResponse:
        """Ask why (GET), and revoke (POST)."""
        if not self.has_revoke_permission(request):
            raise PermissionDenied
        posted = request.method == "POST"
        ids = list(dict.fromkeys((request.POST if posted else request.GET).get("devices", "").split(",")))[: MOST + 1]
        found = {device.device_id: device for device in self.get_queryset(request).filter(device_id__in=ids)}
        devices = [found[name] for name in ids if name in found]
        form = ReasonForm(request.POST if posted else None)
        if not posted or not devices or len(ids) > MOST or not form.is_valid():
            return self._ask(request, devices, form, too_many=len(ids) > MOST)
        outcome = self._revoke(request, devices, form.cleaned_data["reason"])
        self._report(request, outcome)
        if outcome.refusal:
            done = {device.pk for device in (*outcome.revoked, *outcome.skipped)}
            return self._ask(request, [device for device in devices if device.pk not in done], form)
        if len(devices) == 1:
            return self._to("change", devices[0].pk)
        return self._to("changelist")

    def _to(self, page: str, *args: Any) -> HttpResponse:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"
        return HttpResponseRedirect(reverse(name, args=args, current_app=self.admin_site.name))

    def _ask(
        self, request: HttpRequest, devices: Sequence[Device], form: ReasonForm, *, too_many: bool = False
    ) -> HttpResponse:
        trusted = [device for device in devices if not device.is_revoked]
        if too_many or len(devices) > MOST:
            self.message_user(
                request,
                text("At most %(most)d devices can be revoked at once. Choose fewer, or use manage.py amesh_revoke.")
                % {"most": MOST},
                messages.ERROR,
            )
            return self._to("changelist")
        if not trusted:
            if devices:
                message = text("Already revoked: %(devices)s. Nothing is left to do.") % {"devices": _listed(devices)}
            else:
                message = text("No such device is in the list any more. Choose others.")
            self.message_user(request, message, messages.WARNING)
            return self._to("changelist")
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": ngettext("Revoke %(count)d device", "Revoke %(count)d devices", len(trusted))
            % {"count": len(trusted)},
            "opts": self.opts,
            "form": form,
            "trusted": trusted,
            "names": ",".join(device.device_id for device in trusted),
            "skipped": [device for device in devices if device.is_revoked],
            "only": devices[0] if len(devices) == 1 else None,
        }
        return TemplateResponse(request, "admin/amesh/device/revoke.html", context)

    def _revoke(self, request: HttpRequest, devices: Sequence[Device], reason: str) -> _Outcome:
        """Revoke each, as far as it goes: what is revoked stays revoked if a later one fails."""
        outcome = _Outcome()
        try:
            snapshot.current()  # finds more than a change does, such as a list that was rolled back
            allow_list = DatabaseAllowList(by=request.user.get_username())
            for device in devices:
                try:
                    if device.is_revoked:
                        raise DeviceNotFound
                    allow_list.revoke(device.device_id, reason=reason)
                except DeviceNotFound:  # another one was quicker
                    outcome.skipped.append(device)
                else:
                    outcome.revoked.append(device)
                    self.log_change(request, device, text("Revoked. Reason: %(reason)s") % {"reason": reason})
        except REFUSALS as error:
            outcome.refusal = explain(error)
        return outcome

    def _report(self, request: HttpRequest, outcome: _Outcome) -> None:
        if outcome.revoked:
            done = ngettext(
                "Revoked: %(devices)s. It is refused from its next request on.",
                "Revoked: %(devices)s. They are refused from their next request on.",
                len(outcome.revoked),
            ) % {"devices": _listed(outcome.revoked)}
            self.message_user(request, done, messages.SUCCESS)
        if outcome.skipped:
            skipped = text("Already revoked, skipped: %(devices)s.") % {"devices": _listed(outcome.skipped)}
            self.message_user(request, skipped, messages.WARNING)
        if outcome.refusal:
            self.message_user(request, outcome.refusal, messages.ERROR)
