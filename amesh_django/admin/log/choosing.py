"""Choosing events: the form above the log, and the query that it means. Each condition is found by an index, with a million events, too."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent, Device
from amesh_django.trust.database import database

#: Devices with a name, whose events are looked for. If more have it, the page asks for a longer name.
MAX_DEVICES: Final = 500
_BEGINNING_OF_IDS: Final = "am_"
#: Kinds of few events with a name that is not that of a device: tokens, groups, servers.
_NAMED: Final = (EventKind.TOKEN_MADE, EventKind.TOKEN_WITHDRAWN, EventKind.SERVER)
_YEARS: Final = range(1970, 9000)


class _Day(forms.DateField):
    """A day, with the calendar of the browser."""

    def __init__(self, label: Any) -> None:
        widget = forms.DateInput({"type": "date"}, format="%Y-%m-%d")
        super().__init__(label=label, required=False, input_formats=["%Y-%m-%d"], widget=widget)

    def clean(self, value: Any) -> dt.date | None:
        day: dt.date | None = super().clean(value)
        if day is not None and day.year not in _YEARS:
            raise ValidationError(self.error_messages["invalid"], code="invalid")
        return day


class LogForm(forms.Form):
    """Which events a page shows. Links from other pages use the names of its fields as parameters."""

    q = forms.CharField(label=_("Search"), required=False, max_length=200, help_text=_("Name, device ID or author"))
    by = forms.CharField(label=_("Person"), required=False, max_length=150, help_text=_("The whole name"))
    device = forms.CharField(label=_("Device"), required=False, max_length=200, help_text=_("Device ID, or name"))
    kind = forms.ChoiceField(label=_("What happened"), required=False)
    since = _Day(_("From"))
    until = _Day(_("To"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: True if more devices have the name than are looked for.
        self.has_more = False
        field = self.fields["kind"]
        if isinstance(field, forms.ChoiceField):
            kinds = sorted(EventKind.choices, key=lambda choice: str(choice[1]))
            field.choices = [("", _("anything")), *kinds]
        for name, one in self.fields.items():
            if one.help_text:
                one.widget.attrs["aria-describedby"] = f"id_{name}_helptext"

    def chosen(self) -> QuerySet[AuditEvent]:
        """Return the events, in no order; none if the form has errors."""
        rows = AuditEvent.objects.using(database()).order_by()
        if not self.is_valid():
            return rows.none()
        given: Mapping[str, Any] = self.cleaned_data
        if given["q"]:
            rows = rows.filter(self._search(given["q"]))
        if given["device"]:
            rows = rows.filter(self._about(given["device"]))
        if given["by"]:
            rows = rows.filter(actor=given["by"])
        if given["kind"]:
            rows = rows.filter(kind=given["kind"])
        if given["since"]:
            rows = rows.filter(at__gte=_start_of(given["since"]))
        if given["until"]:
            rows = rows.filter(at__lt=_start_of(given["until"] + dt.timedelta(days=1)))
        return rows

    def _search(self, text: str) -> Q:
        return self._about(text) | Q(actor=text) | Q(kind__in=_NAMED, subject__icontains=text)

    def _about(self, text: str) -> Q:
        """Return the condition that an event is about a device with this ID, with an ID that begins so, or with this in its name."""
        if text.startswith(_BEGINNING_OF_IDS):
            return Q(device_id__startswith=text)
        named = Device.objects.using(database()).order_by()
        purged = AuditEvent.objects.using(database()).filter(kind=EventKind.PURGE).order_by()
        for word in text.split():
            named, purged = named.filter(friendly_name__icontains=word), purged.filter(subject__icontains=word)
        found = [
            *named.values_list("device_id", flat=True)[: MAX_DEVICES + 1],
            *purged.values_list("device_id", flat=True)[: MAX_DEVICES + 1],
        ]
        self.has_more = len(found) > MAX_DEVICES
        return Q(device_id__in=found[:MAX_DEVICES])


def _start_of(day: dt.date) -> dt.datetime:
    moment = dt.datetime.combine(day, dt.time())
    return timezone.make_aware(moment) if timezone.is_aware(timezone.now()) else moment
