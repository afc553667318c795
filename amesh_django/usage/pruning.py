"""Deleting old counts: hours after 3 days, days after 400 days."""

from __future__ import annotations

import datetime as dt
import time

from django.utils import timezone

from amesh_django.models import RequestCount
from amesh_django.trust.database import database

from .writing import DAY, HOUR

HOURS_ARE_KEPT = dt.timedelta(days=3)
DAYS_ARE_KEPT = dt.timedelta(days=400)
#: Rows that are deleted at a time. What is left is deleted the next time.
MAX_ROWS = 5000
#: Seconds between two times at which a process deletes, and if some were left.
PAUSE_SECONDS = 3600.0
SHORT_PAUSE_SECONDS = 10.0

_BATCH = 500
_due_at = float("-inf")


def prune(now: dt.datetime | None = None) -> int:
    """Delete old counts, at most :data:`MAX_ROWS`.

    Args:
        now: the time, as Django's ``timezone.now`` returns it. Defaults to that.

    Returns:
        The number of rows that were deleted.

    Raises:
        django.db.Error: the database is down, or another process deletes the same rows.
    """
    moment = now or timezone.now()
    rows = RequestCount.objects.using(database())
    deleted = 0
    for period, kept in ((HOUR, HOURS_ARE_KEPT), (DAY, DAYS_ARE_KEPT)):
        old = rows.filter(period=period, start__lt=moment - kept).order_by("start", "pk").values_list("pk", flat=True)
        pks = list(old[: MAX_ROWS - deleted])
        for start in range(0, len(pks), _BATCH):
            deleted += rows.filter(pk__in=pks[start : start + _BATCH]).delete()[0]
    return deleted


def prune_sometimes(now: dt.datetime | None = None) -> None:
    """Delete old counts if this process has not done so for an hour, or if it left some ten seconds ago.

    Args:
        now: as for :func:`prune`.

    Raises:
        django.db.Error: as for :func:`prune`.
    """
    global _due_at
    moment = time.monotonic()
    if moment < _due_at:
        return
    _due_at = moment + PAUSE_SECONDS
    if prune(now) >= MAX_ROWS:
        _due_at = moment + SHORT_PAUSE_SECONDS


def reset() -> None:
    """Forget when this process has deleted last."""
    global _due_at
    _due_at = float("-inf")
