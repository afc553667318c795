"""The devices that wait for approval."""

from __future__ import annotations

import datetime as dt

from django.db.models import Q, QuerySet
from django.utils import timezone

from amesh_django.models import Device
from amesh_django.trust.database import database


def is_waiting(now: dt.datetime) -> Q:
    """Return the condition for devices in the state ``pending``, which an index serves.

    Args:
        now: the time, as Django's ``timezone.now`` returns it.
    """
    is_suspended = Q(suspended_at__isnull=False) & (Q(suspended_until__isnull=True) | Q(suspended_until__gt=now))
    return (
        Q(pending_since__isnull=False, revoked_at__isnull=True, denied_at__isnull=True)
        & ~is_suspended
        & (Q(expires_at__isnull=True) | Q(expires_at__gt=now))
    )


def queue(now: dt.datetime | None = None) -> QuerySet[Device]:
    """Return the devices that wait for approval, those that have waited longest first. The rows are not verified.

    Args:
        now: the time. Defaults to the current time.
    """
    rows = Device.objects.using(database()).filter(is_waiting(now or timezone.now()))
    return rows.order_by("pending_since", "pk")


def waiting(now: dt.datetime | None = None) -> int:
    """Return the number of devices that wait for approval. One query, which an index serves.

    Args:
        now: the time. Defaults to the current time.

    Raises:
        django.db.Error: the database cannot be used.
    """
    return queue(now).order_by().count()
