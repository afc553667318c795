"""Whether amesh wrote an event of the audit log, and what happened, in words."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext as _

from amesh_django.audit.reading import UNREADABLE_KIND
from amesh_django.models import AuditEvent
from amesh_django.trust import SealedList, current_list
from authmesh.protocol.errors import AmeshError

from . import shown


def sealed_or_none() -> SealedList | None:
    """Return the list whose keys verify the MACs of the audit log, or None if the keys are not available."""
    try:
        sealed = current_list()
        sealed.unlock()
    except (AmeshError, ImproperlyConfigured):
        return None
    return sealed


def is_genuine(sealed: SealedList | None, event: AuditEvent) -> bool | None:
    """Return True if amesh wrote an event, False if its MAC is wrong, None if it cannot be verified.

    Args:
        sealed: from :func:`sealed_or_none`.
        event: an event of the audit log.
    """
    return None if sealed is None else sealed.is_genuine_event(event)


def kind_of(event: AuditEvent) -> str:
    """Return what happened, in words."""
    is_damaged = event.kind == UNREADABLE_KIND
    return _("damaged: cannot be read") if is_damaged else shown.choice(event.get_kind_display())
