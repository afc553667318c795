"""Verifying the log from the admin: at once if the log is short, and in the background otherwise."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from amesh_django.audit import background, checkpoints, verifications
from amesh_django.audit.background import Running
from amesh_django.audit.verifying import Fault, Verified
from amesh_django.spelling import manage_py
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.places import log_start
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import Run

from .. import shown
from ..trouble import CHANGE_ERRORS, explain
from .exports import ExportingAdmin

#: Events that are verified while the browser waits: a second or two.
MAX_AT_ONCE: Final = 10_000


class VerifyForm(forms.Form):
    """How much of the log is verified."""

    scope = forms.ChoiceField(
        label=_("How much"),
        choices=[("whole", _("The whole log")), ("newest", _("What came after the newest checkpoint"))],
        initial="whole",
        widget=forms.RadioSelect,
    )


class VerifyingAdmin(ExportingAdmin):
    """The part of :class:`.EventAdmin` that verifies the log."""

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, without ATOMIC_REQUESTS: verifying locks the log only at its end."""
        alone = transaction.non_atomic_requests(using=database())
        view = alone(self.admin_site.admin_view(self.verify_view))
        return [path("verify/", view, name="amesh_auditevent_verify"), *super().get_urls()]

    @method_decorator(csrf_protect)
    def verify_view(self, request: HttpRequest) -> HttpResponse:
        """Show when the log was verified last (GET), or verify it (POST)."""
        if not self.has_export_permission(request):
            raise PermissionDenied
        form = VerifyForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            try:
                self._verify(request, only_newest=form.cleaned_data["scope"] == "newest")
            except CHANGE_ERRORS as error:
                self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(self.page("verify"))
        context = {"form": form, "amesh_verified": state_of_log(), "audit_command": manage_py(Run("audit", "--verify"))}
        return self.answer(request, "log/verify.html", gettext("Verify the audit log"), context)

    def _verify(self, request: HttpRequest, *, only_newest: bool) -> None:
        sealed = current_list()
        sealed.unlock()
        checkpoint = checkpoints.newest(sealed) if only_newest else None
        end, start = sealed.read_end(), log_start(sealed).seq
        first = checkpoint.seq if checkpoint is not None else start
        total = max(0, (end[0].seq if end is not None else 0) - first)
        begin = checkpoint.end if checkpoint is not None else None
        if only_newest and begin is None:
            self.message_user(
                request, gettext("There is no valid checkpoint, so the whole log is verified."), messages.WARNING
            )
        if total <= MAX_AT_ONCE:
            background.forget_error()
            self._say(request, verifications.verify_and_record(self.actor(request), begin=begin))
        elif background.start(self.actor(request), total, begin=begin):
            text = gettext("The log is being verified. That goes on if you leave this page.")
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, gettext("The log is being verified already."), messages.WARNING)

    def _say(self, request: HttpRequest, found: Verified) -> None:
        if found.fault is None:
            text = gettext("The audit log is as amesh wrote it. Events: %(count)d.") % {"count": found.events}
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, _fault(found.fault), messages.ERROR)


def state_of_log() -> dict[str, Any]:
    """Return what a page says about the newest verification, and about one that runs."""
    try:
        found = verifications.last_verified()
        problem = ""
    except CHANGE_ERRORS as error:
        found, problem = None, explain(error)
    return {"last": _last(found), "problem": problem, **_running(background.running())}


def _last(found: verifications.Verification | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "at": shown.full_time(found.at),
        "by": clean_line(found.by) or shown.NOTHING,
        "events": found.events,
        "after": found.after,
        "fault": clean_line(found.fault),
    }


def _running(found: Running | None) -> dict[str, Any]:
    if found is None:
        return {}
    said = {
        "by": clean_line(found.by),
        "since": shown.full_time(dt.datetime.fromtimestamp(found.since, dt.UTC)),
        "done": found.done,
        "total": found.total,
        "error": clean_line(found.error),
    }
    return {"failed": said} if found.error else {"running": said}


def _fault(fault: Fault) -> str:
    text = gettext(
        "The audit log has a fault: %(fault)s. %(about)s Nothing was changed. Compare the log with a copy on another system, and find out "
        "who can write to the database."
    )
    return text % {"fault": clean_line(fault.text), "about": clean_line(fault.about)}
