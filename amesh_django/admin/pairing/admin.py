"""Pairings in the admin: the form that begins one, and the page of one, which follows it until the device is trusted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST

from amesh_django.models import PairingSession
from amesh_django.pairing import hosting, sessions
from amesh_django.pairing.chosen import Chosen
from amesh_django.trust.database import database
from authmesh.commands.relays import DEFAULT_RELAY
from authmesh.protocol.display import clean_line
from authmesh.protocol.pairing.codes import parse_entered

from .. import shown
from ..base import Pages, base_class
from ..trouble import CHANGE_ERRORS, explain, trouble
from . import showing
from .form import PairingForm, problem

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[PairingSession]
else:
    ModelAdmin = base_class()


@admin.register(PairingSession)
class PairingAdmin(Pages, ModelAdmin):
    """The pairings of people. ``amesh.pair_device``, in addition to viewing devices, allows to begin one.

    The page of a pairing is for the person who began it. The rows are shown nowhere else: they have one-time codes.
    """

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perms(["amesh.view_device", "amesh.pair_device"])

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        """Return our pages alone: those of Django would show the rows."""
        alone = transaction.non_atomic_requests(using=database())
        views: dict[str, tuple[str, Callable[..., HttpResponse]]] = {
            "": ("changelist", self.begin_view),
            "<str:token>/": ("page", self.page_view),
            "<str:token>/state/": ("state", self.state_view),
            "<str:token>/answer/": ("answer", self.answer_view),
            "<str:token>/cancel/": ("cancel", self.cancel_view),
            "<str:token>/again/": ("again", self.again_view),
        }
        return [
            path(address, alone(self.admin_site.admin_view(view)), name=f"amesh_pairingsession_{name}")
            for address, (name, view) in views.items()
        ]

    # --- begin -------------------------------------------------------------------------------------------------------

    @method_decorator(csrf_protect)
    def begin_view(self, request: HttpRequest) -> HttpResponse:
        """Ask what the device gets (GET), or begin a pairing (POST)."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        context: dict[str, Any] = {"form": None, "under_way": []}
        try:
            relay = hosting.relay_url()
            context |= {"relay": clean_line(relay), "is_public": relay == DEFAULT_RELAY}
            context["under_way"] = self._under_way(request)
            if trouble() is None:
                form = context["form"] = PairingForm(request.user, request.POST if request.method == "POST" else None)
                if form.is_valid():
                    return self._begin(request, form.chosen(), relay)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
        return self.answer(request, "pairing/begin.html", gettext("Pair a device"), context)

    def _begin(self, request: HttpRequest, chosen: Chosen, relay: str) -> HttpResponse:
        user = request.user
        row = sessions.begin(owner=str(user.pk), by=user.get_username(), chosen=chosen, relay=relay)
        self.log_addition(request, row, gettext("Begun."))
        with suppress(*CHANGE_ERRORS):  # the page says why
            hosting.start(row)
        return HttpResponseRedirect(self.page("page", row.token))

    def _under_way(self, request: HttpRequest) -> list[dict[str, Any]]:
        """Return the pairings of all people, each with its page if it is that of the user."""
        own = str(request.user.pk)
        return [
            {
                "by": clean_line(row.by),
                "since": shown.ago(row.begun_at),
                "page": self.page("page", row.token) if row.owner == own else "",
            }
            for row in sessions.under_way()
        ]

    # --- one pairing -------------------------------------------------------------------------------------------------

    def _own(self, request: HttpRequest, token: str) -> PairingSession | None:
        """Return the pairing of the user with that name; None if it is that of another person, or there is none."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = sessions.find(token)
        return row if row is not None and row.owner == str(request.user.pk) else None

    def page_view(self, request: HttpRequest, token: str) -> HttpResponse:
        """Show a pairing."""
        try:
            row = self._own(request, token)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(self.page("changelist"))
        if row is None:
            return self._not_here(request, token)
        sessions.note_seen(row)
        found = showing.show(row)
        context = {
            **self._context(row, found),
            "state_url": self.page("state", row.token),
            "live_url": f"{self.page('page', row.token)}live" if self._is_live(request) else "",
            "now": time.time(),
            "refresh": self._refresh(row, found),
        }
        return self.answer(request, "pairing/page.html", gettext("Pair a device"), context)

    def _not_here(self, request: HttpRequest, token: str) -> HttpResponse:
        """Say whose pairing it is. Its code is for that person alone."""
        row = sessions.find(token)
        context = {"by": clean_line(row.by) if row is not None else "", "since": shown.ago(row.begun_at) if row else ""}
        return self.answer(request, "pairing/other.html", gettext("Pair a device"), context, status=200 if row else 404)

    def state_view(self, request: HttpRequest, token: str) -> HttpResponse:
        """Return what the page shows now as JSON, or 304 if that is what it shows already."""
        try:
            row = self._own(request, token)
        except CHANGE_ERRORS:
            return JsonResponse({}, status=503)
        if row is None:
            return JsonResponse({}, status=404)
        sessions.note_seen(row)
        found = showing.show(row)
        tag = f'"{found.tag}"'
        response: HttpResponse
        if request.headers.get("If-None-Match") == tag:
            response = HttpResponseNotModified()
        else:
            fragment = render_to_string("admin/amesh/pairing/state.html", self._context(row, found), request)
            response = JsonResponse({"html": fragment, "status": found.status, "over": found.is_over})
        response["ETag"] = tag
        return response

    @method_decorator([require_POST, csrf_protect, sensitive_post_parameters("code")])
    def answer_view(self, request: HttpRequest, token: str) -> HttpResponse:
        """Pass on the verification code that the user has typed."""

        def act(row: PairingSession) -> str | None:
            digits = parse_entered(request.POST.get("code", "").strip())
            if digits is None:
                return gettext("A verification code has six digits. Nothing was checked: enter it again.")
            if request.POST.get("device") != row.device_id:
                return gettext("Another device has come meanwhile. Nothing was checked: compare it first.")
            if (why := problem(request.user, Chosen.from_json(row.chosen_json))) is not None:
                sessions.cancel(row)
                return why
            if not sessions.answer(row, digits):
                return gettext("This pairing does not wait for a verification code any more.")
            return None

        return self._act(request, token, act)

    @method_decorator([require_POST, csrf_protect])
    def cancel_view(self, request: HttpRequest, token: str) -> HttpResponse:
        """Cancel a pairing."""

        def act(row: PairingSession) -> str | None:
            return None if sessions.cancel(row) else gettext("This pairing has ended already.")

        return self._act(request, token, act)

    @method_decorator([require_POST, csrf_protect])
    def again_view(self, request: HttpRequest, token: str) -> HttpResponse:
        """Begin another pairing with what was chosen for this one."""
        try:
            row = self._own(request, token)
            if row is None:
                return self._not_here(request, token)
            chosen = Chosen.from_json(row.chosen_json)
            if (why := problem(request.user, chosen)) is None:
                return self._begin(request, chosen, hosting.relay_url())
            self.message_user(request, why, messages.ERROR)
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
        return HttpResponseRedirect(self.page("changelist"))

    def _act(self, request: HttpRequest, token: str, act: Any) -> HttpResponse:
        """Do something with the pairing of the user, say why if that cannot be done, and return to its page."""
        try:
            row = self._own(request, token)
            if row is None:
                return self._not_here(request, token)
            why = act(row)
        except CHANGE_ERRORS as error:
            why = explain(error, self.admin_site.name)
        if why is not None:
            self.message_user(request, why, messages.ERROR)
        return HttpResponseRedirect(self.page("page", token))

    # --- what the page needs -----------------------------------------------------------------------------------------

    def _context(self, row: PairingSession, found: showing.Shown) -> dict[str, Any]:
        pages = {f"{name}_url": self.page(name, row.token) for name in ("answer", "cancel", "again")}
        context = showing.context(row, found, self.admin_site.name)
        device = context.get("device")
        return {
            **context,
            **pages,
            "begin_url": self.page("changelist"),
            "device_url": self.page("change", device.pk, model="device") if device is not None else "",
        }

    @staticmethod
    def _is_live(request: HttpRequest) -> bool:
        """Return True if this process also serves the WebSocket of the page."""
        return hasattr(request, "scope") and "amesh_django.pairing.routing" in sys.modules

    @staticmethod
    def _refresh(row: PairingSession, found: showing.Shown) -> int | None:
        """Return the seconds after which a page without JavaScript is loaded again: not while a person types."""
        if found.is_over:
            return None
        return showing.seconds_left(row) + 1 if found.phase == "code" else 3
