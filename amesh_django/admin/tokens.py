"""Enrollment tokens in the admin: make one, withdraw one, and see which machines came with it.

A token is shown in the response to the form that makes it, and nowhere else: it is in no URL, no message, no log, and no later page.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_variables

from amesh_django.conf import amesh_settings
from amesh_django.enrollment import tokens
from amesh_django.enrollment.tokens import NewToken
from amesh_django.models import Device, EnrollmentToken
from amesh_django.trust.damage import UNREADABLE, each_row, has_types, reading
from amesh_django.trust.database import database
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

from . import shown
from .base import Pages, base_class
from .selecting import verified
from .token_form import TokenForm
from .trouble import CHANGE_ERRORS, explain, verify_shown

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[EnrollmentToken]
else:
    ModelAdmin = base_class()

_STATES = {
    "open": (_("open"), "amesh-trusted"),
    "used_up": (_("used up"), ""),
    "expired": (_("expired"), ""),
    "withdrawn": (_("withdrawn"), "amesh-revoked"),
    "void": (_("void"), "amesh-revoked"),
    "changed": (_("CHANGED outside Django"), "amesh-revoked"),
}
# Maximum number of machines that the page of a token names.
_MAX_MACHINES = 200


class StateFilter(admin.SimpleListFilter):
    """Filters by state, as the columns say it. The list verifies each row that it shows."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(name, _STATES[name][0]) for name in ("open", "used_up", "expired", "withdrawn")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[EnrollmentToken]) -> QuerySet[EnrollmentToken]:
        withdrawn, expired = Q(withdrawn_at__isnull=False), Q(expires_at__lte=timezone.now())
        used_up = Q(uses__gte=F("max_uses"))
        conditions = {
            "withdrawn": withdrawn,
            "expired": expired & ~withdrawn,
            "used_up": used_up & ~expired & ~withdrawn,
            "open": ~used_up & ~expired & ~withdrawn,
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


class TokenList(ChangeList):
    """A page of the list. A token that was damaged so that it cannot be read is left out: no machine can enroll with it."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        keys = list(self.result_list.values_list("pk", flat=True))
        self.result_list = [row for _pk, row in each_row(self.queryset.filter(pk__in=keys)) if row is not None]


@admin.register(EnrollmentToken)
class TokenAdmin(Pages, ModelAdmin):
    """The enrollment tokens.

    Permissions: ``amesh.view_enrollmenttoken`` to view them, ``amesh.add_enrollmenttoken`` to make one, and
    ``amesh.withdraw_enrollmenttoken``, in addition to viewing, to withdraw one.
    """

    list_display = ("shown_name", "shown_state", "shown_uses", "shown_expires", "shown_author")
    list_display_links = ("shown_name",)
    list_filter = (StateFilter,)
    search_fields = ("name", "jti", "created_by")
    search_help_text = _("Name, number or author")
    ordering = ("-created_at", "-id")
    list_per_page = 50
    actions = None
    change_form_template = "admin/amesh/enrollmenttoken/change_form.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a token is withdrawn, and never changed."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: EnrollmentToken | None = None) -> bool:
        """Return False: a token is withdrawn, and never deleted; but a user may be deleted, with the tokens that map to this user."""
        match = request.resolver_match
        return (
            obj is not None and match is not None and not (match.url_name or "").startswith(f"{self.opts.app_label}_")
        )

    def has_withdraw_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may both view and withdraw tokens."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.withdraw_enrollmenttoken")

    def get_queryset(self, request: HttpRequest) -> QuerySet[EnrollmentToken]:
        """Return the tokens of the database that is written to: a replica may lag behind."""
        return EnrollmentToken.objects.using(database()).select_related("user").order_by(*self.ordering)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list, without damaged tokens."""
        return TokenList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> EnrollmentToken | None:
        """Return the token; None if it was damaged so that it cannot be read."""
        try:
            with reading():
                token = super().get_object(request, object_id, from_field)
        except UNREADABLE:
            return None
        return token if token is not None and has_types(EnrollmentToken, token.__dict__) else None

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs, without ATOMIC_REQUESTS: a change of the list is repeated on conflicts, each time in a new transaction."""
        alone = transaction.non_atomic_requests(using=database())
        view = alone(self.admin_site.admin_view(self.withdraw_view))
        return [path("<path:object_id>/withdraw/", view, name="amesh_enrollmenttoken_withdraw"), *super().get_urls()]

    # --- the list and the page of one token --------------------------------------------------------------------------

    @admin.display(description=_("name"), ordering="name")
    def shown_name(self, token: EnrollmentToken) -> str:
        return clean_line(token.name) or shown.NOTHING

    @admin.display(description=_("state"))
    def shown_state(self, token: EnrollmentToken) -> SafeString:
        state = _state(token)
        word, style = _STATES.get(state or "", (_("cannot be verified"), "amesh-revoked"))
        return format_html('<span class="amesh-state {}">{}</span>', style, word)

    @admin.display(description=_("machines"), ordering="uses")
    def shown_uses(self, token: EnrollmentToken) -> SafeString:
        return shown.labeled(
            _("machines"), gettext("%(uses)d of %(max)d") % {"uses": token.uses, "max": token.max_uses}
        )

    @admin.display(description=_("valid until"), ordering="expires_at")
    def shown_expires(self, token: EnrollmentToken) -> SafeString:
        return shown.labeled(_("valid until"), shown.full_time(token.expires_at))

    @admin.display(description=_("made by"), ordering="created_by")
    def shown_author(self, token: EnrollmentToken) -> SafeString:
        return shown.labeled(_("made by"), clean_line(token.created_by) or shown.NOTHING)

    @admin.display(description=_("number"))
    def shown_number(self, token: EnrollmentToken) -> SafeString:
        return shown.code(token.jti)

    @admin.display(description=_("made"))
    def shown_created(self, token: EnrollmentToken) -> str:
        return shown.full_time(token.created_at)

    @admin.display(description=_("withdrawn"))
    def shown_withdrawn(self, token: EnrollmentToken) -> str:
        return shown.full_time(token.withdrawn_at)

    @admin.display(description=_("scopes"))
    def shown_scopes(self, token: EnrollmentToken) -> str:
        return ", ".join(map(clean_line, token.scopes)) or shown.NOTHING

    @admin.display(description=_("groups"))
    def shown_groups(self, token: EnrollmentToken) -> str:
        return ", ".join(map(clean_line, token.groups)) or shown.NOTHING

    @admin.display(description=_("mapped user"))
    def shown_user(self, token: EnrollmentToken) -> str:
        return clean_line(token.user.get_username()) if token.user is not None else shown.NOTHING

    @admin.display(description=_("keys expire after"))
    def shown_life(self, token: EnrollmentToken) -> str:
        if token.device_seconds is None:
            return shown.NOTHING
        minutes, seconds = divmod(token.device_seconds, 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        parts = (
            (days, ngettext("%(count)d day", "%(count)d days", days)),
            (hours, ngettext("%(count)d hour", "%(count)d hours", hours)),
            (minutes, ngettext("%(count)d minute", "%(count)d minutes", minutes)),
            (seconds, ngettext("%(count)d second", "%(count)d seconds", seconds)),
        )
        return " ".join(text % {"count": count} for count, text in parts if count)

    @admin.display(description=_("approved"), boolean=True)
    def shown_approved(self, token: EnrollmentToken) -> bool:
        return token.approved

    def get_fieldsets(self, request: HttpRequest, obj: EnrollmentToken | None = None) -> Any:
        """Return all columns that a person may see."""
        return [
            (None, {"fields": ["shown_name", "shown_number", "shown_state", "shown_uses"]}),
            (
                _("Machines get"),
                {"fields": ["shown_scopes", "shown_groups", "shown_user", "shown_life", "shown_approved"]},
            ),
            (_("Life"), {"fields": ["shown_created", "shown_author", "shown_expires", "shown_withdrawn"]}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: EnrollmentToken | None = None) -> list[str]:
        """Return all fields."""
        return [name for _title, options in self.get_fieldsets(request, obj) for name in options["fields"]]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Return the page of a token, with the machines that came with it and the button that withdraws it."""
        token = context.get("original")
        if isinstance(token, EnrollmentToken):
            ids = tokens.machines(token)
            found = each_row(Device.objects.using(database()).filter(device_id__in=ids[:_MAX_MACHINES]))
            rows = [one for _pk, one in found if one is not None]
            devices = {one.device_id: one for one in verified(rows)}
            verify_shown(rows)
            context |= {
                "amesh_machines": [(one, devices.get(one)) for one in ids[:_MAX_MACHINES]],
                "amesh_more": max(0, len(ids) - _MAX_MACHINES),
                "amesh_may_withdraw": _state(token) in ("open", "used_up") and self.has_withdraw_permission(request),
                "amesh_may_view_devices": request.user.has_perm("amesh.view_device"),
            }
        return super().render_change_form(request, context, *args, **kwargs)

    # --- make one ----------------------------------------------------------------------------------------------------

    @method_decorator(csrf_protect)
    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask what the token is for (GET), or make it and show it once (POST)."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        try:
            form = TokenForm(request.user, request.POST if request.method == "POST" else None)
            if amesh_settings().URL is None:
                text = _("The address of this server is not known, so no token can be made. Set AMESH['URL'].")
                self.message_user(request, text, messages.ERROR)
            elif form.is_valid():
                return self._made(request, self._make(request, form))
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            return HttpResponseRedirect(self.page("changelist"))
        return self.answer(request, "enrollmenttoken/form.html", gettext("Make an enrollment token"), {"form": form})

    def _make(self, request: HttpRequest, form: TokenForm) -> NewToken:
        given, days = form.cleaned_data, form.cleaned_data["device_days"]
        user = given.get("user")
        made = tokens.make(
            url=amesh_settings().URL or "",
            name=given["name"],
            uses=given["uses"],
            lifetime=given["lifetime"],
            by=request.user.get_username(),
            scopes=given["scopes"],
            groups=given.get("groups", ()),
            user_id=user.pk if user is not None else None,
            approved=given.get("approved", False),
            device_seconds=days * 86400 if days else None,
        )
        self.log_addition(request, made.row, gettext("Made."))
        return made

    @sensitive_variables("made")
    def _made(self, request: HttpRequest, made: NewToken) -> HttpResponse:
        response = self.answer(
            request,
            "enrollmenttoken/made.html",
            gettext("The enrollment token was made"),
            {"original": made.row, "token": made.text},
        )
        response["Referrer-Policy"] = "no-referrer"
        return response

    # --- withdraw one ------------------------------------------------------------------------------------------------

    @method_decorator(csrf_protect)
    def withdraw_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask (GET), or withdraw a token (POST)."""
        if not self.has_withdraw_permission(request):
            raise PermissionDenied
        token = self.get_object(request, object_id)
        if token is None:
            raise Http404
        if request.method != "POST":
            title = gettext("Withdraw %(name)s") % {"name": clean_line(token.name)}
            return self.answer(
                request, "enrollmenttoken/withdraw.html", title, {"original": token, "state": self.shown_state(token)}
            )
        try:
            tokens.withdraw(token.jti, by=request.user.get_username())
        except CHANGE_ERRORS as error:
            self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
        else:
            self.log_change(request, token, gettext("Withdrawn."))
            text = _("The token was withdrawn. No further machine can enroll with it; those that have stay trusted.")
            self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(self.page("change", token.pk))


def _state(token: EnrollmentToken) -> str | None:
    """Return the state of a token; None if the keys of this server cannot be used."""
    try:
        return tokens.state(token, time.time())
    except AmeshError:
        return None
