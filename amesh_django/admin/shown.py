"""Values as the admin shows them: names made harmless, device IDs in full, labels for screens too narrow for a table."""

from __future__ import annotations

import datetime as dt

from django.utils import formats, timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, SUSPENDED, State
from authmesh.protocol.display import NO_NAME, clean, clean_line

NOTHING = "–"

#: The states of a device, as the admin names them. Only the first is accepted.
STATE_NAMES = {
    ACTIVE: gettext_lazy("trusted"),
    PENDING: gettext_lazy("waits for approval"),
    EXPIRED: gettext_lazy("expired"),
    SUSPENDED: gettext_lazy("suspended"),
    DENIED: gettext_lazy("denied"),
    REVOKED: gettext_lazy("revoked"),
}


def code(text: str) -> SafeString:
    """Return a device ID or a key as HTML: monospace, in full. admin.js adds a button that copies it."""
    return format_html('<code class="amesh-code" dir="ltr" data-amesh-copy>{}</code>', clean_line(text))


def name(device: Device) -> str:
    """Return the name of a device without characters that could deceive: the device chose the name itself."""
    found = clean(device.friendly_name)
    return found if found != NO_NAME else _("(no name)")


def state_of(device: Device) -> State:
    """Return the state of a device: according to the verified list, if ``verify_shown`` has set that."""
    found: State = getattr(device, "amesh_state", None) or device.state
    return found


def is_revoked(device: Device) -> bool:
    """Return True if the device is revoked now. A key that was replaced is not, until its time has come."""
    return state_of(device) == REVOKED


def state(device: Device) -> SafeString:
    """Return the state of a device as HTML: a word and a color."""
    found = state_of(device)
    color = "amesh-trusted" if found == ACTIVE else "amesh-revoked"
    return format_html('<span class="amesh-state {}">{}</span>', color, STATE_NAMES[found])


def details(device: Device) -> str:
    """Return the decisions that the state of a device follows from, as sentences; empty if there are none."""
    found = []
    if device.revoked_at is not None and is_revoked(device):
        found.append(
            _decision(
                _("Revoked %(at)s by %(by)s: %(why)s."), device.revoked_at, device.revoked_by, device.revoke_reason
            )
        )
    elif device.revoked_at is not None:
        named = {"by": clean_line(device.revoked_by), "until": full_time(device.revoked_at)}
        found.append(_("The key was replaced by that of %(by)s, and is accepted until %(until)s.") % named)
    if device.denied_at is not None:
        found.append(
            _decision(_("Denied %(at)s by %(by)s: %(why)s."), device.denied_at, device.denied_by, device.deny_reason)
        )
    if device.suspended_at is not None:
        found.append(
            _decision(
                _("Suspended %(at)s by %(by)s: %(why)s."),
                device.suspended_at,
                device.suspended_by,
                device.suspend_reason,
            )
        )
    if device.suspended_until is not None:
        found.append(_("Suspended until %(until)s.") % {"until": full_time(device.suspended_until)})
    if device.kept_until is not None:
        named = {"until": full_time(device.kept_until), "by": clean_line(device.kept_by) or NOTHING}
        found.append(_("Also suspended until %(until)s by %(by)s.") % named)
    if device.expires_at is not None:
        found.append(_("The key expires %(at)s.") % {"at": full_time(device.expires_at)})
    if device.pending_since is not None:
        found.append(_("Waits for approval since %(at)s.") % {"at": full_time(device.pending_since)})
    return " ".join(found)


def _decision(sentence: str, at: dt.datetime, by: str, why: str) -> str:
    named = {"at": full_time(at), "by": clean_line(by) or NOTHING, "why": clean_line(why).rstrip(".") or NOTHING}
    return sentence % named


def choice(label: str) -> str:
    """Return the label of a choice. In a row that was changed outside Django, it may be any text."""
    return clean_line(str(label)) or NOTHING


def _local(moment: dt.datetime) -> dt.datetime:
    try:
        return timezone.localtime(moment) if timezone.is_aware(moment) else moment
    except OverflowError:  # the first or last day of the calendar
        return moment


def full_time(moment: dt.datetime | None) -> str:
    """Return date and time."""
    return formats.date_format(_local(moment), "DATETIME_FORMAT") if moment is not None else NOTHING


def day(moment: dt.datetime) -> SafeString:
    """Return the date as HTML, with date and time as a tooltip."""
    local = _local(moment)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(),
        full_time(moment),
        formats.date_format(local, "DATE_FORMAT"),
    )


def ago(moment: dt.datetime | None) -> SafeString | str:
    """Return the time since then as HTML, with date and time as a tooltip."""
    if moment is None:
        return _("never")
    now = timezone.now()
    if now - moment < dt.timedelta(minutes=1):
        words = _("just now")
    else:
        words = _("%(time)s ago") % {"time": timesince(moment, now, depth=1)}
    return format_html('<time datetime="{}" title="{}">{}</time>', _local(moment).isoformat(), full_time(moment), words)


def labeled(label: str | Promise, value: str) -> SafeString:
    """Return a cell with a label, which is visible only if the screen is too narrow for the head of the table."""
    return format_html('<span class="amesh-label">{}</span> {}', label, value)
