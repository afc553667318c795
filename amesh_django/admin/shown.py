"""Values as the admin shows them: names made harmless, device IDs in full, labels for screens too narrow for a table."""

from __future__ import annotations

import datetime as dt

from django.utils import formats, timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _

from amesh_django.models import Device
from authmesh.protocol.display import NO_NAME, clean, clean_line

NOTHING = "–"


def code(text: str) -> SafeString:
    """Return a device ID or a key as HTML: monospace, in full. admin.js adds a button that copies it."""
    return format_html('<code class="amesh-code" data-amesh-copy>{}</code>', clean_line(text))


def name(device: Device) -> str:
    """Return the name of a device without characters that could deceive: the device chose the name itself."""
    found = clean(device.friendly_name)
    return found if found != NO_NAME else _("(no name)")


def is_revoked(device: Device) -> bool:
    """Return True if the device was revoked: according to the verified list, if ``verify_shown`` has set that."""
    return bool(getattr(device, "amesh_revoked", device.is_revoked))


def state(device: Device) -> SafeString:
    """Return the state of a device as HTML: a word and a color."""
    if is_revoked(device):
        return format_html('<span class="amesh-state amesh-revoked">{}</span>', _("revoked"))
    return format_html('<span class="amesh-state amesh-trusted">{}</span>', _("trusted"))


def choice(label: str) -> str:
    """Return the label of a choice. In a row that was changed outside Django, it may be any text."""
    return clean_line(str(label)) or NOTHING


def _local(moment: dt.datetime) -> dt.datetime:
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


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
