"""The servers of this hub, and the hubs of this server, in the admin. Read-only; a server can be paused, resumed, and tried again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from amesh_django.fleet import overview, servers
from amesh_django.models import Hub, Server
from amesh_django.trust.database import database
from authmesh.protocol.display import clean, clean_line

from . import shown
from .base import Pages, base_class
from .trouble import CHANGE_ERRORS, explain

if TYPE_CHECKING:
    ServerModelAdmin = admin.ModelAdmin[Server]
    HubModelAdmin = admin.ModelAdmin[Hub]
else:
    ServerModelAdmin = HubModelAdmin = base_class()

#: Maximum number of servers that the page of a device names.
MAX_WAITING: Final = 50
_GOOD: Final = ("up_to_date", "heard")
_NEUTRAL: Final = ("waiting", "not_heard")
#: What a person may do to a server: the button, the question, and what is said afterward.
_ACTIONS: Final = {
    "pause": (
        _("Pause"),
        _("Until it is resumed, this server is told of no revocation, and accepts devices that are revoked here."),
        _("The server is paused. It is told of nothing until it is resumed."),
    ),
    "resume": (
        _("Resume"),
        _("The server is told of all that happened meanwhile, and of what follows."),
        _("The server is resumed. What happened meanwhile is under way."),
    ),
    "retry": (
        _("Try again now"),
        _("The server is tried at once, without waiting for the next attempt."),
        _("The server is tried again."),
    ),
}


class ServerList(ChangeList):
    """A page of servers: all are looked at at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        with suppress(*CHANGE_ERRORS):  # the banner says why
            for found in overview.view(self.result_list):
                found.server.__dict__["_amesh_view"] = found


class HubList(ChangeList):
    """A page of hubs: all are looked at at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        known = _hubs()
        for row in self.result_list:
            row.__dict__["_amesh_view"] = known.get(row.device_id)


class _ReadOnly:
    """A model that people only look at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Server)
class ServerAdmin(_ReadOnly, Pages, ServerModelAdmin):
    """The servers of this hub. ``amesh.manage_server``, in addition to viewing, allows to pause, resume, and retry."""

    list_display = ("shown_name", "shown_state", "shown_lag", "shown_answer", "shown_attempts")
    fields = (
        *("shown_name", "shown_id", "shown_state", "shown_url", "shown_told", "shown_lag", "shown_cursor"),
        *("shown_answer", "shown_attempt", "shown_attempts", "shown_error", "shown_refused", "shown_added"),
    )
    readonly_fields = fields
    search_fields = ("url", "device_id")
    actions = None
    change_form_template = "admin/amesh/server/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Server]:
        """Return the servers of the database that is written to: a replica may lag behind."""
        return Server.objects.using(database()).order_by("url", "id")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ServerList

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.change_state_view)
        pages = [
            path(f"<path:object_id>/{name}/", view, {"action": name}, name=f"amesh_server_{name}") for name in _ACTIONS
        ]
        return [*pages, *super().get_urls()]

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may view servers, and pause, resume, and retry them."""
        return self.has_view_permission(request) and request.user.has_perm("amesh.manage_server")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {"title": gettext("Servers"), **(extra_context or {})})

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Return the page of a server, with the buttons that pause, resume, and retry it."""
        row = context.get("original")
        if isinstance(row, Server) and self.has_manage_permission(request):
            view = _view(row)
            names = {"paused": ["resume"], "changed": []}.get(view.state, ["pause", "retry"])
            context["amesh_actions"] = [(_ACTIONS[name][0], self.page(name, row.pk)) for name in names]
        return super().render_change_form(request, context, *args, **kwargs)

    @method_decorator(csrf_protect)
    def change_state_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """Ask (GET), or pause, resume, or retry a server (POST)."""
        if not self.has_manage_permission(request):
            raise PermissionDenied
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404
        label, question, done = _ACTIONS[action]
        if request.method == "POST":
            does = {"pause": servers.pause, "resume": servers.resume, "retry": servers.retry}[action]
            try:
                does(row.device_id, by=self.actor(request))
            except (*CHANGE_ERRORS, servers.ServerNotFound) as error:
                self.message_user(request, explain(error, self.admin_site.name), messages.ERROR)
            else:
                self.log_change(request, row, f"{label}.")
                self.message_user(request, done, messages.SUCCESS)
            return HttpResponseRedirect(self.page("change", row.pk))
        context = {"original": row, "question": question, "label": label, "state": self.shown_state(row)}
        return self.answer(request, "server/confirm.html", f"{label}: {self.shown_name(row)}", context)

    @admin.display(description=_("server"), ordering="url")
    def shown_name(self, row: Server) -> str:
        return clean(_view(row).name)

    @admin.display(description=_("state"))
    def shown_state(self, row: Server) -> SafeString:
        state = _view(row).state
        return pill(overview.STATES[state], state)

    @admin.display(description=_("device ID"))
    def shown_id(self, row: Server) -> SafeString:
        return shown.code(row.device_id)

    @admin.display(description=_("address"))
    def shown_url(self, row: Server) -> SafeString:
        return _breaking(clean_line(row.url))

    @admin.display(description=_("told of"))
    def shown_told(self, row: Server) -> str:
        groups = ", ".join(gettext("all devices") if name == servers.ALL else clean_line(name) for name in row.groups)
        told = shown.choice(row.get_scope_of_events_display())
        return f"{told}: {groups}" if groups else told

    @admin.display(description=_("lacks"))
    def shown_lag(self, row: Server) -> SafeString:
        return shown.labeled(_("lacks"), lag_of(_view(row)))

    @admin.display(description=_("last answer"), ordering="last_ok_at")
    def shown_answer(self, row: Server) -> SafeString:
        return shown.labeled(_("last answer"), shown.ago(row.last_ok_at))

    @admin.display(description=_("last attempt"))
    def shown_attempt(self, row: Server) -> str:
        return shown.full_time(row.last_sent_at)

    @admin.display(description=_("confirmed up to"))
    def shown_cursor(self, row: Server) -> str:
        """Return the newest change that the server has confirmed; nothing if it knows another list."""
        view = _view(row)
        if view.state in ("changed", "unknown"):
            return gettext("not known")
        return gettext("none yet") if view.lacks_list else gettext("revision %(number)d") % {"number": row.acked}

    @admin.display(description=_("failed attempts"))
    def shown_attempts(self, row: Server) -> SafeString:
        return shown.labeled(_("failed attempts"), str(row.attempts))

    @admin.display(description=_("last error"))
    def shown_error(self, row: Server) -> SafeString:
        meaning = str(overview.MEANING[_view(row).state])
        return _breaking(" ".join(filter(None, (clean_line(row.last_error), meaning))) or shown.NOTHING)

    @admin.display(description=_("refused"))
    def shown_refused(self, row: Server) -> SafeString | str:
        """Return what the server refused, and why, as a list."""
        lines = [
            (
                clean_line(str(one.get("event", ""))),
                shown.code(str(one.get("device", ""))),
                clean_line(str(one.get("why", ""))),
            )
            for one in _view(row).refused
        ]
        items = format_html_join("", "<li>{} {}: {}</li>", lines)
        return format_html('<ul class="amesh-refused">{}</ul>', items) if lines else shown.NOTHING

    @admin.display(description=_("added"))
    def shown_added(self, row: Server) -> str:
        return f"{shown.full_time(row.added_at)}, {clean_line(row.added_by) or shown.NOTHING}"


@admin.register(Hub)
class HubAdmin(_ReadOnly, Pages, HubModelAdmin):
    """The hubs that this server follows."""

    list_display = ("shown_name", "shown_state", "shown_contact", "shown_applied")
    fields = ("shown_name", "shown_id", "shown_state", "shown_url", "shown_may", "shown_contact", "shown_applied")
    readonly_fields = fields
    actions = None

    def get_queryset(self, request: HttpRequest) -> QuerySet[Hub]:
        """Return the hubs of the database that is written to: a replica may lag behind."""
        return Hub.objects.using(database()).order_by("device_id")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return HubList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {"title": gettext("Hubs"), **(extra_context or {})})

    @admin.display(description=_("hub"), ordering="device_id")
    def shown_name(self, row: Hub) -> str:
        found = _hub(row)
        return clean(found.name) if found is not None else clean_line(row.device_id)

    @admin.display(description=_("device ID"))
    def shown_id(self, row: Hub) -> SafeString:
        return shown.code(row.device_id)

    @admin.display(description=_("state"))
    def shown_state(self, row: Hub) -> SafeString:
        found = _hub(row)
        return pill(overview.HUB_STATES[found.state], found.state) if found is not None else pill(_("not known"), "")

    @admin.display(description=_("address"))
    def shown_url(self, row: Hub) -> SafeString:
        return _breaking(clean_line(row.url) or shown.NOTHING)

    @admin.display(description=_("may"))
    def shown_may(self, row: Hub) -> str:
        found = _hub(row)
        if found is None or found.permissions or not found.words:
            return ", ".join(found.permissions) if found is not None and found.permissions else shown.NOTHING
        text = gettext(
            "nothing any more. What it has said still counts, unless a person trusts the key. To remove it, run: %(command)s"
        )
        return text % {"command": f"manage.py amesh_hubs forget {clean_line(row.device_id)}"}

    @admin.display(description=_("last contact"), ordering="last_contact_at")
    def shown_contact(self, row: Hub) -> SafeString:
        return shown.labeled(_("last contact"), shown.ago(row.last_contact_at))

    @admin.display(description=_("applied"))
    def shown_applied(self, row: Hub) -> SafeString:
        text = gettext("%(applied)d of %(head)d") % {"applied": row.applied, "head": row.head}
        return shown.labeled(_("applied"), text)


def _view(row: Server) -> overview.ServerView:
    """Return a server as it is shown. It is looked at once for each page."""
    found: overview.ServerView | None = row.__dict__.get("_amesh_view")
    if found is None:
        try:
            (found,) = overview.view([row])
        except CHANGE_ERRORS:  # the banner says why
            found = overview.unknown(row, row.device_id)
        row.__dict__["_amesh_view"] = found
    return found


def _hub(row: Hub) -> overview.HubView | None:
    if "_amesh_view" not in row.__dict__:
        row.__dict__["_amesh_view"] = _hubs().get(row.device_id)
    found: overview.HubView | None = row.__dict__["_amesh_view"]
    return found


def _hubs() -> dict[str, overview.HubView]:
    try:
        return {one.device_id: one for one in overview.hubs()}
    except CHANGE_ERRORS:  # the banner says why
        return {}


def lag_of(view: overview.ServerView) -> str:
    """Return what a server lacks, in words."""
    if view.revisions is None:
        return gettext("not known")
    if not view.revisions:
        return gettext("nothing")
    if view.lacks_list:
        return gettext("the whole list")
    text = ngettext(
        "%(count)d change, for %(seconds)d seconds", "%(count)d changes, for %(seconds)d seconds", view.revisions
    )
    return text % {"count": view.revisions, "seconds": view.seconds or 0}


def _breaking(text: str) -> SafeString:
    """Return a text as HTML whose words break on a narrow screen."""
    return format_html('<span class="amesh-breaking">{}</span>', text)


def pill(word: Any, state: str) -> SafeString:
    """Return the state of a server or hub as HTML: a word and a color."""
    color = "amesh-trusted" if state in _GOOD else "" if state in _NEUTRAL else "amesh-revoked"
    return format_html('<span class="amesh-state {}">{}</span>', color, word)


def under_way(serial: int | None = None) -> str:
    """Return a sentence about the servers that must learn of a change, or an empty text if this hub has none.

    Args:
        serial: revision of the list with the change. Defaults to the newest one.
    """
    try:
        done, count = overview.acknowledged(servers.head().revision if serial is None else serial)
    except CHANGE_ERRORS:
        return ""
    if not count:
        return ""
    text = ngettext(
        "%(done)d of %(count)d server has confirmed it.", "%(done)d of %(count)d servers have confirmed it.", count
    ) % {"done": done, "count": count}
    return f"{text} {gettext('The others are being told.')}" if done < count else text


def waiting(serial: int) -> list[tuple[str, SafeString, str]]:
    """Return the servers of this hub that have not confirmed a change: name, state, and what that means.

    Args:
        serial: revision of the list with the change.
    """
    try:
        found = overview.view(overview.unconfirmed(serial)[:MAX_WAITING])
    except CHANGE_ERRORS:
        return []
    return [
        (clean(one.name), pill(overview.STATES[one.state], one.state), str(overview.MEANING[one.state]))
        for one in found
    ]


def words_about(public_key: str) -> list[str]:
    """Return what hubs have said about a key, in sentences.

    Args:
        public_key: in base64, as the model holds it.
    """
    return [overview.described_word(entry, shown.full_time(entry.at)) for entry in overview.words_about(public_key)]
