"""The page on which people add a device by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_protect

from amesh_django.enrollment import by_hand
from amesh_django.models import Device
from amesh_django.server import server_device
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, SUSPENDED
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.owner import controller_limit
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.display import NO_NAME, clean
from authmesh.protocol.key_line import KeyLine
from authmesh.protocol.keys import device_id

from .. import shown
from ..base import Pages, base_class
from ..damaged import readable
from ..trouble import CHANGE_ERRORS, explain, trouble, verify_shown
from .form import AddingForm, LineForm

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Device]
else:
    ModelAdmin = base_class()


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that is in the list already.

    Attributes:
        sentence: that it is there, and in which state.
        advice: what to do.
        device: its row, as the verified list has it; None if that cannot be shown.
    """

    sentence: str
    advice: str
    device: Device | None


class AddingAdmin(Pages, ModelAdmin):
    """The part of :class:`.DeviceAdmin` that adds a device by hand."""

    def has_enroll_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may both view devices and add one by hand (``amesh.enroll_device``)."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.enroll_device")

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, the page that adds a device first: it looks like the page of a device."""
        alone = transaction.non_atomic_requests(using=database())
        view = alone(self.admin_site.admin_view(self.add_by_hand_view))
        return [path("add-by-hand/", view, name="amesh_device_add_by_hand"), *super().get_urls()]

    @readable
    @method_decorator(csrf_protect)
    def add_by_hand_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the line (GET), show the device ID (POST of the line), or trust the device (POST of the second page)."""
        if not self.has_enroll_permission(request):
            raise PermissionDenied
        context: dict[str, Any] = {"may_add": trouble() is None}
        form = LineForm(request.POST if request.method == "POST" else None)
        if not context["may_add"] or not form.is_valid():
            return self._page(request, {**context, "form": form})
        line: KeyLine = form.cleaned_data["line"]
        try:
            known = _known(line)
            if known is not None:
                return self._page(request, {**context, "form": form, "known": known})
            context["is_full"] = _is_full()
            given = AddingForm(request.user, request.POST if "step" in request.POST else None)
            if not given.is_valid():
                return self._compare(request, line, request.POST["line"], given, context)
            device = by_hand.add(line, given.given(), by=self.actor(request))
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(self.page("add_by_hand"))
        self.log_addition(request, device, _("Added by hand."))
        if device.state == PENDING:
            text = _("Added: %(device)s. It waits for approval: its requests are rejected until it is approved.")
        elif device.state == ACTIVE:
            text = _("Added: %(device)s. It is trusted now.")
        else:
            text = _("Added: %(device)s. A hub has suspended it, so its requests are rejected.")
        self.message_user(request, text % {"device": device}, messages.SUCCESS)
        return HttpResponseRedirect(self.page("change", device.pk))

    def _page(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        return self.answer(request, "adding/line.html", _("Add a device by hand"), {"original": None, **context})

    def _compare(
        self, request: HttpRequest, line: KeyLine, text: str, form: AddingForm, context: dict[str, Any]
    ) -> HttpResponse:
        name = clean(line.name)
        about = {
            "line": text,
            "form": form,
            "device_id": device_id(line.public_key),
            "name": name if name != NO_NAME else _("(no name)"),
            "is_other_name": name != line.name,
            "original": None,
        }
        return self.answer(request, "adding/compare.html", _("Compare the device ID"), {**context, **about})


def _is_full() -> bool:
    """Return True if the list has as many controllers as it may have."""
    row = current_list().snapshot().row
    return row is not None and row.controllers >= controller_limit()


def _known(line: KeyLine) -> _Known | None:
    """Return what is known about a key, or None if it is in no list."""
    if line.public_key == server_device().identity.public_key:
        text = _("This is the key of this server itself.")
        return _Known(text, _("Run amesh export-key on the other device, and paste the line that it prints."), None)
    found = current_list().snapshot().by_key.get(line.public_key)
    if found is None:
        return None
    device = Device.objects.using(database()).filter(pk=found.pk).first()
    if device is not None:
        verify_shown([device])
    state = found.state(time.time())
    sentence, advice = {
        ACTIVE: (
            _("This device is trusted already.") if found.role == CONTROLLER else _("This device is a target already."),
            _("To change what it may do, open its page. To change its role, use manage.py amesh_trust on the server."),
        ),
        PENDING: (_("This device waits for approval."), _("Approve it or deny it.")),
        SUSPENDED: (_("This device is suspended."), _("To accept it again, lift the suspension on its page.")),
        EXPIRED: (_("The key of this device has expired."), _("Let the device make a new key, or put off the expiry.")),
        DENIED: (_("This device was denied."), _("If that was a mistake, approve it on its page.")),
        REVOKED: (
            _("This device was revoked."),
            _("If it can be trusted again, reinstate it on its page. Otherwise let the device make a new key."),
        ),
    }[state]
    why = shown.details(device) if device is not None else ""
    return _Known(f"{sentence} {why}".strip(), advice, device)
