"""The leases of servers and hubs: who has one may send to the server, or ask the hub.

A lease is taken by one UPDATE with a condition, which every database has.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable
from typing import Any

from django.conf import settings as django_settings
from django.db.models import Q
from django.utils import timezone

from amesh_django.models import Hub, Server

#: Life of a lease, which ends by itself if the process that has it is killed. It is renewed before each POST, so it must outlast one
#: (posting.TOTAL_SECONDS, and a second for giving up), and what a message takes to make. A server waits for it after a kill.
LEASE_SECONDS = 6.0
#: A lease, or a time of the next attempt, that is so far ahead was written by a host with a wrong clock, and does not count.
_MAX_AHEAD_SECONDS = 600.0
#: Life of the lease of the process that asks a hub.
_ASKING_SECONDS = 5.0
#: One that ends much later than a lease that was taken just now was written by a host with a wrong clock.
_MAX_SKEW_SECONDS = 60.0


def moment_of(now: float) -> dt.datetime:
    """Return a time as the columns hold it.

    Args:
        now: Unix seconds.
    """
    found = dt.datetime.fromtimestamp(now, dt.UTC)
    return found if django_settings.USE_TZ else timezone.make_naive(found)


def is_reachable(now: float) -> Q:
    """Return the condition that a server is not paused, that its next attempt is due, and that nobody has its lease."""
    moment, ahead = moment_of(now), moment_of(now + _MAX_AHEAD_SECONDS)

    def is_past(column: str) -> Q:
        return Q(**{column: None}) | Q(**{f"{column}__lte": moment}) | Q(**{f"{column}__gt": ahead})

    return Q(enabled=True) & is_past("next_attempt_at") & is_past("lease_until")


class Lease:
    """The lease of one server.

    Args:
        using: database alias.
        pk: primary key of the server.
        now: returns Unix seconds.

    Attributes:
        is_over: True if it was given back.
    """

    def __init__(self, using: str, pk: int, now: Callable[[], float]) -> None:
        self._rows = Server.objects.using(using).filter(pk=pk)
        self._now = now
        self._name = secrets.token_hex(16)
        self.is_over = False

    def take(self) -> Server | None:
        """Return the row of the server, or None if it is not to be served now, or by somebody else."""
        now = self._now()
        until = moment_of(now + LEASE_SECONDS)
        if not self._rows.filter(is_reachable(now)).update(lease_until=until, lease_by=self._name):
            return None
        return self._rows.filter(lease_by=self._name).first()

    def renew(self, more: float = 0.0) -> bool:
        """Begin the life of the lease again. Return False if it was lost.

        Args:
            more: seconds that it must outlast :data:`LEASE_SECONDS`.
        """
        until = moment_of(self._now() + LEASE_SECONDS + more)
        return bool(self._rows.filter(lease_by=self._name).update(lease_until=until))

    def save(self, server: Server, *, is_last: bool = False, **columns: Any) -> bool:
        """Write columns and keep the lease. Return False if it was lost: then nothing was written.

        Args:
            server: the row.
            is_last: True to give the lease back instead.
            columns: column → value.
        """
        for name, value in columns.items():
            setattr(server, name, value)
        until = None if is_last else moment_of(self._now() + LEASE_SECONDS)
        name = "" if is_last else self._name
        is_kept = bool(self._rows.filter(lease_by=self._name).update(lease_until=until, lease_by=name, **columns))
        self.is_over |= is_last
        return is_kept

    def release(self) -> None:
        """Give the lease back, unless that was done."""
        if not self.is_over:
            self._rows.filter(lease_by=self._name).update(lease_until=None, lease_by="")
            self.is_over = True


class HubLease:
    """The lease of a hub that this server follows. It ends by itself if the process that asks is killed.

    Args:
        using: database alias.
        pk: primary key of the row of the hub.
    """

    def __init__(self, using: str, pk: int) -> None:
        self._rows, self._name = Hub.objects.using(using).filter(pk=pk), secrets.token_hex(16)

    def take(self, now: float) -> bool:
        """Return True if nobody else asks the hub now.

        Args:
            now: Unix seconds.
        """
        moment, until = moment_of(now), moment_of(now + _ASKING_SECONDS)
        is_free = (
            Q(lease_until=None) | Q(lease_until__lte=moment) | Q(lease_until__gt=moment_of(now + _MAX_SKEW_SECONDS))
        )
        # Read first: the UPDATE would wait for a process that is just applying what it was told.
        if not self._rows.filter(is_free).exists():
            return False
        return bool(self._rows.filter(is_free).update(lease_until=until, lease_by=self._name))

    def release(self) -> None:
        """Give it back."""
        self._rows.filter(lease_by=self._name).update(lease_until=None, lease_by="")
