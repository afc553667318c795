"""Settings: the audit log has each change of ``AMESH`` that this server was started with."""

from __future__ import annotations

import dataclasses

from amesh_django.conf import AmeshSettings, amesh_settings
from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database

from .recording import record

#: Settings that differ between hosts, or that may hold a password.
_LEFT_OUT = frozenset({"DIR", "SEAL_KEY_FILE", "SEAL_KEY_FILES", "RELAY"})
#: Events among which the newest genuine one is looked for.
_MAX_READ = 10


def note(by: str) -> bool:
    """Write an event if settings have changed since the last one. Return True if so.

    Args:
        by: who looks.
    """
    current = amesh_settings()
    values = {
        field.name: _json(getattr(current, field.name))
        for field in dataclasses.fields(AmeshSettings)
        if field.name not in _LEFT_OUT
    }
    sealed = current_list()
    events = AuditEvent.objects.using(database()).filter(kind=AuditEvent.Kind.SETTING).order_by("-id")
    newest = each_row(events, _MAX_READ)
    last = next((event for _pk, event in newest if event is not None and sealed.is_genuine_event(event)), None)
    known = data_of(last).get("settings") if last is not None else None
    if known == values:
        return False
    names = sorted(name for name in values if known is not None and values[name] != known.get(name))
    record(AuditEvent.Kind.SETTING, by=by, subject=", ".join(names), data={"settings": values, "before": known})
    return True


def _json(value: object) -> object:
    """Return a value of a setting as JSON has it."""
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
