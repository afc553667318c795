"""The pages on which people decide about devices: each asks (GET), with the devices and what will happen, and does (POST)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import Device
from amesh_django.trust import current_list

from ..damaged import readable
from ..fleet import under_way
from ..trouble import CHANGE_ERRORS, explain, trouble, verify_complete, verify_shown
from .forms import REVISION_FIELD
from .revoking import MAX_DEVICES, RevokingAdmin, listed
from .verbs import VERBS, Verb


class ActingAdmin(RevokingAdmin):
    """The part of :class:`.DeviceAdmin` with which people decide. Each verb of :data:`.VERBS` is a page and a permission."""

    def may(self, request: HttpRequest, verb: Verb) -> bool:
        """Return True if the user may both view devices, and decide this."""
        return self.has_view_permission(request) and request.user.has_perm(f"{self.opts.app_label}.{verb.permission}")

    def has_suspend_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may suspend devices, and lift that."""
        return self.may(request, VERBS["suspend"])

    def offered(self, request: HttpRequest, device: Device) -> list[dict[str, Any]]:
        """Return the buttons of the page of a device: what the user may do now, and what fits the device.

        While the list is rejected, nothing can be decided but that a device is revoked.
        """
        verbs = [verb for verb in VERBS.values() if self.may(request, verb) and verb.fits(device)]
        if not verbs or trouble() is not None:
            return []
        return [
            {"label": verb.label, "url": f"{self.page(verb.name)}?devices={device.device_id}", "verb": verb.name}
            for verb in verbs
        ]

    def get_urls(self) -> list[URLPattern]:
        info = (self.opts.app_label, self.opts.model_name)
        view = self.admin_site.admin_view(self.verb_view)
        pages = [
            path(f"{verb.name}/", view, {"verb": verb}, name="{}_{}_{}".format(*info, verb.name))
            for verb in VERBS.values()
        ]
        return [*pages, *super().get_urls()]

    @admin.action(permissions=["approve"], description=_("Approve selected devices"))
    def approve_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse:
        """Return the page that asks, for the selected devices."""
        return self._ask_about(request, VERBS["approve"], queryset)

    @admin.action(permissions=["approve"], description=_("Deny selected devices"))
    def deny_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse:
        """Return the page that asks, for the selected devices."""
        return self._ask_about(request, VERBS["deny"], queryset)

    @admin.action(permissions=["suspend"], description=_("Suspend selected devices"))
    def suspend_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse:
        """Return the page that asks, for the selected devices."""
        return self._ask_about(request, VERBS["suspend"], queryset)

    @admin.action(permissions=["suspend"], description=_("Lift the suspension of selected devices"))
    def lift_selected(self, request: HttpRequest, queryset: QuerySet[Device]) -> HttpResponse:
        """Return the page that asks, for the selected devices."""
        return self._ask_about(request, VERBS["lift"], queryset)

    def _ask_about(self, request: HttpRequest, verb: Verb, queryset: QuerySet[Device]) -> HttpResponse:
        return self._handle(request, verb, list(queryset[: MAX_DEVICES + 1]), sent=None)

    @readable
    def verb_view(self, request: HttpRequest, verb: Verb) -> HttpResponse:
        """Ask (GET), or do it (POST)."""
        if not self.may(request, verb):
            raise PermissionDenied
        is_sent = request.method == "POST"
        names = self.named_devices(request)
        found = {device.device_id: device for device in self.get_queryset(request).filter(device_id__in=names)}
        devices = [found[name] for name in names if name in found]
        return self._handle(request, verb, devices, sent=request.POST if is_sent else None)

    def _handle(self, request: HttpRequest, verb: Verb, devices: Sequence[Device], *, sent: Any) -> HttpResponse:
        verify_shown(devices)
        if not devices:
            verify_complete()
        fitting = [device for device in devices if verb.fits(device)]
        problem = _problem(verb, devices, fitting)
        if problem:
            self.message_user(request, problem, messages.WARNING)
            return HttpResponseRedirect(self._after(devices))
        try:
            current_list().snapshot()  # also detects an older list that was restored, unlike the change
            form = verb.form(request.user, fitting, sent)
            if sent is not None and form.is_valid():
                ids = [device.device_id for device in fitting]
                verb.do(DatabaseAllowList(by=self.actor(request)), ids, form.cleaned_data)
                self._say(request, verb, fitting, form.cleaned_data.get("reason", ""))
                return HttpResponseRedirect(self._after(devices))
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(self._after(devices))
        named = {"device": fitting[0], "count": len(fitting)}
        title = str(verb.title if len(fitting) == 1 else verb.title_of_many) % named
        context = {
            "verb": verb,
            "step": verb.label,
            "form": form,
            "devices": fitting,
            "skipped": [device for device in devices if device not in fitting],
            "names": ",".join(device.device_id for device in fitting),
            "revision_field": REVISION_FIELD,
            "action": self.page(verb.name),
            "back": self._after(devices),
            "original": devices[0] if len(devices) == 1 else None,
        }
        return self.answer(request, "device/verb.html", title, context)

    def _after(self, devices: Sequence[Device]) -> str:
        return self.page("change", devices[0].pk) if len(devices) == 1 else self.page("changelist")

    def _say(self, request: HttpRequest, verb: Verb, devices: Sequence[Device], reason: str) -> None:
        named = str(verb.done) % {"devices": listed(devices)}
        for device in devices:
            done = str(verb.done) % {"devices": device.device_id}
            why = gettext("Reason: %(reason)s") % {"reason": reason} if reason else ""
            self.log_change(request, device, f"{done} {why}".rstrip())
        self.message_user(request, f"{named} {under_way()}".rstrip(), messages.SUCCESS)


def _problem(verb: Verb, devices: Sequence[Device], fitting: Sequence[Device]) -> str:
    """Return why there is nothing to ask; empty if there is something."""
    if not devices:
        return gettext("No such device is in the allow list. Select other devices.")
    if len(devices) > MAX_DEVICES:
        return gettext("At most %(max)d devices can be changed at once. Select fewer devices. Nothing was changed.") % {
            "max": MAX_DEVICES
        }
    if len(devices) > 1 and not verb.title_of_many:
        return gettext("This is decided about one device alone. Nothing was changed.")
    if not fitting:
        return gettext("This does not fit the present state of %(devices)s. Nothing was changed.") % {
            "devices": listed(devices)
        }
    return ""
