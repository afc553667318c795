"""Recording: an event that is not a change of the allow list. It stops nothing: one that cannot be written is logged."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from amesh_django.trust import current_list
from amesh_django.trust.chain import announce, new_event, save_events
from amesh_django.trust.database import database

logger = logging.getLogger("amesh_django.audit")


def record(kind: str, *, by: str = "", data: Mapping[str, Any] | None = None, **columns: Any) -> None:
    """Write an event as soon as the open transaction is committed, or at once if none is open. Never raises.

    Args:
        kind: one of ``AuditEvent.Kind``.
        by: who did it, as for :func:`~amesh_django.trust.chain.new_event`.
        data: what else is known, with values that JSON has.
        columns: other columns, as for :func:`~amesh_django.trust.chain.new_event`.
    """
    record_all([{"kind": kind, "by": by, "data": data, **columns}])


def record_all(events: Sequence[Mapping[str, Any]]) -> None:
    """Write events in one statement, as :func:`record` does.

    Args:
        events: the arguments of :func:`record` for each.
    """
    try:
        using = database()
        transaction.on_commit(lambda: _write(using, events), using=using, robust=True)
    except Exception as error:  # the database is down
        _complain(events, error)


def _write(using: str, events: Sequence[Mapping[str, Any]]) -> None:
    try:
        sealed = current_list(using)
        keys = sealed.log_keys()
        # The random member tells two events apart that are equal otherwise, so that a copy of an event is known for one.
        rows = [
            new_event(keys, **{**one, "data": {**(one.get("data") or {}), "n": secrets.token_hex(8)}}) for one in events
        ]
        save_events(using, rows)
    except Exception as error:  # whatever it is, what the event is about has happened
        _complain(events, error)
        return
    announce(rows)


def _complain(events: Sequence[Mapping[str, Any]], error: Exception) -> None:
    kinds = ", ".join(sorted({str(one["kind"]) for one in events}))
    logger.error("Events could not be written to the audit log (%s): %s", type(error).__name__, kinds)
