"""Verifications: each is an event with its result, so that people see when the log was verified last, by whom, and what was found."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.utils import timezone, translation

from amesh_django.models import AuditEvent
from amesh_django.trust import current_list
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database
from amesh_django.trust.sealing import LogEnd

from .recording import record
from .verifying import Verified, verify

#: Events among which the newest genuine one is looked for.
_MAX_READ = 10


@dataclass(frozen=True, slots=True)
class Verification:
    """A verification of the log that was done.

    Attributes:
        at: time at which it ended.
        by: the person, command, or program that asked for it.
        events: number of events that were verified.
        after: number of the event after which it began; 0 for the whole log.
        fault: the first fault in a few words; empty if there was none.
    """

    at: dt.datetime
    by: str
    events: int
    after: int
    fault: str

    @property
    def is_good(self) -> bool:
        """True if no fault was found."""
        return not self.fault


def last_verified() -> Verification | None:
    """Return the newest verification of the log, by its event; None if there is none. The event is read by an index.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed = current_list()
    sealed.unlock()
    events = AuditEvent.objects.using(database()).filter(kind=AuditEvent.Kind.VERIFIED).order_by("-at", "-id")
    for _pk, event in each_row(events, _MAX_READ):
        if event is not None and sealed.is_genuine_event(event):
            data = data_of(event)
            return Verification(
                event.at, event.actor, _number(data.get("events")), _number(data.get("after")), event.text
            )
    return None


def verify_and_record(
    by: str,
    *,
    after: int = 0,
    begin: LogEnd | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verified:
    """Verify the log, and write an event with the result, which is in the language of the server.

    Args:
        by: who asks for it.
        after: as for :func:`~amesh_django.audit.verifying.verify`.
        begin: as for :func:`~amesh_django.audit.verifying.verify`.
        progress: as for :func:`~amesh_django.audit.verifying.verify`.

    Raises:
        AllowListBusy, IdentityMissing, DirectoryError, KeyStoreError: as for :func:`~amesh_django.audit.verifying.verify`.
    """
    with translation.override(settings.LANGUAGE_CODE):
        found = verify(current_list(), timezone.now(), after, begin, progress)
    data = {"events": found.events, "after": begin.seq if begin is not None else after}
    text = found.fault.text if found.fault is not None else ""
    record(AuditEvent.Kind.VERIFIED, by=by, text=text, data=data)
    return found


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
