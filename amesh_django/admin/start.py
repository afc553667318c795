"""The start page: what a person who runs the trust of a fleet looks at first. It is the page of the app in the admin's index."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from django.core.checks import WARNING, CheckMessage
from django.core.checks.registry import registry
from django.db.models import Count, Q
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from amesh_django.audit.verifications import last_verified
from amesh_django.conf import amesh_settings, problems
from amesh_django.fleet import overview
from amesh_django.models import Device
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, STATES, SUSPENDED
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.usage import reading
from authmesh.protocol.display import clean, clean_line

from . import shown
from .charts import bars
from .devices.filters import EXPIRING, QUIET_DAYS, expiring, in_state, quiet
from .fleet import lag_of, pill
from .trouble import CHANGE_ERRORS, trouble

#: Seconds for which a process keeps the result of the system checks.
CHECKS_SECONDS = 60.0
# Maximum number of servers that need attention, and of reasons of refusals, that the page names.
_MAX_SERVERS, _MAX_REASONS = 10, 15
_DAYS = 30

_COLORS = {ACTIVE: "amesh-trusted", PENDING: "amesh-waits", REVOKED: "", DENIED: "", EXPIRED: "", SUSPENDED: ""}


@dataclass(frozen=True, slots=True)
class Tile:
    """A number with a label, which leads to the list of what it counts.

    Attributes:
        label: what is counted.
        count: how many there are.
        url: the list; empty if the person may not see it.
        color: class of the number.
    """

    label: str | Promise
    count: int
    url: str
    color: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A system check that warns.

    Attributes:
        id: such as ``amesh.W016``.
        message: what is wrong.
        hint: what to do.
    """

    id: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of requests.

    Attributes:
        label: what was counted.
        day, month: how many in the last 24 hours, and in the last 30 days.
        code: True if the label is a word of the log.
    """

    label: str
    day: int
    month: int
    code: bool = False


@dataclass(frozen=True, slots=True)
class Requests:
    """How many signed requests were accepted and refused.

    Attributes:
        chart: the days as SVG, with a table.
        rows: the table by reason.
    """

    chart: str
    rows: list[Row]


@dataclass(slots=True)
class Start:
    """What the start page shows. A part that the person may not view is empty or None.

    Attributes:
        states: the devices by state.
        attention: the devices that somebody should look at.
        servers: tuples of name, address of the page, state, and lag, of the servers that need attention.
        server_sentence: how many servers there are, and how many are up to date.
        servers_url: the list of servers.
        seal: that the list matches its seal, in a sentence; empty if it does not.
        log: when the log was verified, and by whom, in a sentence.
        log_url: the audit log.
        requests: how many signed requests were accepted and refused.
        checks: the system checks that warn.
        may_view_checks: True if the person may see them.
    """

    states: list[Tile] = field(default_factory=list)
    attention: list[Tile] = field(default_factory=list)
    servers: list[tuple[str, str, Any, str]] = field(default_factory=list)
    server_sentence: str = ""
    servers_url: str = ""
    seal: str = ""
    log: str = ""
    log_url: str = ""
    requests: Requests | None = None
    checks: list[Check] = field(default_factory=list)
    may_view_checks: bool = False


def start(request: HttpRequest, site: str) -> Start:
    """Return what the start page shows to a person. The number of queries does not depend on how much there is.

    Args:
        request: of the page.
        site: name of the admin site, for links.
    """
    user, now, found = request.user, timezone.now(), Start()
    if user.has_perm("amesh.view_device") or user.has_perm("amesh.change_device"):
        queue = _page(site, "device_approvals") if user.has_perm("amesh.approve_device") else ""
        found.states, found.attention = _tiles(site, now, queue)
        found.seal = _seal()
        found.checks, found.may_view_checks = checks(), True
        found.requests = _requests(now)
    if user.has_perm("amesh.view_auditevent"):
        found.log, found.log_url = _log(), _page(site, "auditevent_changelist")
    if user.has_perm("amesh.view_server"):
        _servers(found, site, now)
    return found


def _tiles(site: str, now: dt.datetime, queue: str) -> tuple[list[Tile], list[Tile]]:
    """Count the devices, in one query. Those that wait lead to the page on which they are approved, if there is one."""
    conditions: dict[str, Q] = {state: in_state(state, now) for state in STATES}
    conditions |= {f"expires_{days}": expiring(days, now) for days in EXPIRING}
    conditions |= {"quiet": quiet(now)}
    counts = Device.objects.using(database()).aggregate(
        **{f"count_{name}": Count("pk", filter=condition) for name, condition in conditions.items()}
    )
    page = _page(site, "device_changelist")

    def tile(label: str | Promise, name: str, color: str = "", **parameters: str) -> Tile:
        return Tile(label, counts[f"count_{name}"], f"{page}?{urlencode(parameters)}" if page else "", color)

    states = [
        tile(label, state, _COLORS[state], state="trusted" if state == ACTIVE else state)
        for state, label in shown.STATE_NAMES.items()
    ]
    if queue:
        states = [replace(one, url=queue) if one.label == shown.STATE_NAMES[PENDING] else one for one in states]
    attention = [
        *(
            tile(
                ngettext("expires within %(days)d day", "expire within %(days)d days", days) % {"days": days},
                f"expires_{days}",
                expires=str(days),
            )
            for days in EXPIRING
        ),
        tile(
            ngettext("quiet for %(days)d day", "quiet for %(days)d days", QUIET_DAYS) % {"days": QUIET_DAYS},
            "quiet",
            seen="quiet",
        ),
    ]
    return states, attention


def _seal() -> str:
    """Return in a sentence that the list matches its seal; nothing if it does not."""
    if trouble() is not None:
        return ""  # the banner says why
    row = current_list().snapshot().row
    if row is None:
        return _("There is no allow list yet. The first device that is trusted makes it.")
    text = ngettext(
        "The allow list matches its seal: %(count)d device. Checked now.",
        "The allow list matches its seal: %(count)d devices. Checked now.",
        row.count,
    )
    return text % {"count": row.count}


def _requests(now: dt.datetime) -> Requests | None:
    """Return how many signed requests there were; None if none is counted, or if the settings are wrong, which the banner says."""
    if problems() or not amesh_settings().COUNT_REQUESTS:
        return None
    days, day, month = reading.by_day(now=now), reading.totals(now=now), dict(reading.refusals(days=_DAYS, now=now))
    of_day = dict(day.refused)
    rows = [Row(_("accepted"), day.accepted, sum(one.accepted for one in days))]
    rows.append(Row(_("refused"), sum(of_day.values()), sum(month.values())))
    reasons = sorted({*of_day, *month}, key=lambda reason: (-month.get(reason, 0), reason))
    rows += [
        Row(clean_line(name), of_day.get(name, 0), month.get(name, 0), code=True) for name in reasons[:_MAX_REASONS]
    ]
    return Requests(bars(days), rows)


def _log() -> str:
    """Return when the log was verified last, and by whom, in a sentence."""
    try:
        found = last_verified()
    except CHANGE_ERRORS:
        return _("It is not known when the log was verified: the seal cannot be used.")
    if found is None:
        return _("The log has not been verified yet.")
    named = {"at": shown.full_time(found.at), "by": clean_line(found.by) or shown.NOTHING, "count": found.events}
    if found.fault:
        named["fault"] = clean_line(found.fault)
        return _("The log was verified %(at)s by %(by)s, and has a fault: %(fault)s.") % named
    text = ngettext(
        "The log was verified %(at)s by %(by)s, and is as amesh wrote it: %(count)d event.",
        "The log was verified %(at)s by %(by)s, and is as amesh wrote it: %(count)d events.",
        found.events,
    )
    return text % named


def _servers(found: Start, site: str, now: dt.datetime) -> None:
    try:
        views = overview.every(now)
    except CHANGE_ERRORS:
        found.server_sentence = _("The state of the servers is not known: the seal cannot be verified.")
        return
    found.servers_url = _page(site, "server_changelist")
    if not views:
        return
    order = list(overview.STATES)
    good = [view for view in views if view.state == "up_to_date"]
    found.server_sentence = ngettext(
        "%(good)d of %(count)d server is up to date.", "%(good)d of %(count)d servers are up to date.", len(views)
    ) % {"good": len(good), "count": len(views)}
    others = sorted((view for view in views if view.state != "up_to_date"), key=lambda view: -order.index(view.state))
    found.servers = [
        (
            clean(view.name),
            _page(site, "server_change", view.server.pk),
            pill(overview.STATES[view.state], view.state),
            lag_of(view),
        )
        for view in others[:_MAX_SERVERS]
    ]


_lock = Lock()
_checked: tuple[float, list[Check]] | None = None


def checks() -> list[Check]:
    """Return the system checks of amesh that warn. A process keeps them for a minute."""
    global _checked
    with _lock:
        if _checked is None or time.monotonic() - _checked[0] > CHECKS_SECONDS:
            _checked = time.monotonic(), [_shown(one) for one in _run_checks()]
        return _checked[1]


def reset() -> None:
    """Forget the result of the checks. For tests."""
    global _checked
    _checked = None


def _run_checks() -> Sequence[CheckMessage]:
    found = []
    for check in registry.get_checks(include_deployment_checks=False):
        if check.__module__.partition(".")[0] == "amesh_django":
            found += [one for one in check(app_configs=None, databases=[database()]) if one.level >= WARNING]
    return [one for one in found if not one.is_silenced()]


def _shown(one: CheckMessage) -> Check:
    return Check(clean_line(one.id or ""), clean_line(str(one.msg)), clean_line(str(one.hint or "")))


def _page(site: str, name: str, *args: Any) -> str:
    """Return the address of a page of amesh; empty if the admin site does not have it."""
    try:
        return reverse(f"admin:amesh_{name}", args=args, current_app=site)
    except NoReverseMatch:
        return ""
