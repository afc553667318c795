"""How values are shown in the admin: names made harmless, ids in full, labels for screens too narrow for a table."""

from __future__ import annotations

import datetime as dt

from django.utils import formats, timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _

from amesh_django.models import Device
from authmesh.protocol.display import clean, clean_line

NOTHING = "–"


def code(text: str) -> SafeString:
    """An id or a key: monospace, in full, with a button that copies it (static/amesh_django/admin.js makes that)."""
    return format_html('<code class="amesh-code" data-amesh-copy>{}</code>', clean_line(text))


def name(device: Device) -> str:
    """The friendly name, which the device chose itself, without what could deceive."""
    return clean(device.friendly_name)


def state(device: Device) -> SafeString:
    """Trusted or revoked, in words as well as in colour."""
    if device.is_revoked:
        return format_html('<span class="amesh-state amesh-revoked">{}</span>', _("revoked"))
    return format_html('<span class="amesh-state amesh-trusted">{}</span>', _("trusted"))


def choice(label: str) -> str:
    """The label of a choice; a row changed past the app may hold any text there."""
    return clean_line(str(label)) or NOTHING


def _local(moment: dt.datetime) -> dt.datetime:
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def full_time(moment: dt.datetime | None) -> str:
    """Date and time."""
    return formats.date_format(_local(moment), "DATETIME_FORMAT") if moment is not None else NOTHING


def day(moment: dt.datetime) -> SafeString:
    """The date; the time when one points at it."""
    local = _local(moment)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(),
        full_time(moment),
        formats.date_format(local, "DATE_FORMAT"),
    )


def ago(moment: dt.datetime | None) -> SafeString | str:
    """How long ago; the moment itself when one points at it."""
    if moment is None:
        return _("never")
    now = timezone.now()
    if now - moment < dt.timedelta(minutes=1):
        words = _("just now")
    else:
        words = _("%(time)s ago") % {"time": timesince(moment, now, depth=1)}
    return format_html('<time datetime="{}" title="{}">{}</time>', _local(moment).isoformat(), full_time(moment), words)


def labelled(label: str | Promise, value: str) -> SafeString:
    """A cell that says what it is where the head of the table is not shown."""
    return format_html('<span class="amesh-label">{}</span> {}', label, value)
