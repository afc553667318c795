"""How much one hub may change in a minute."""

from __future__ import annotations

import datetime as dt
import sys

from amesh_django.conf import amesh_settings
from amesh_django.models import Hub
from amesh_django.trust.hubs import stored_time

_SECONDS = 60


class Minute:
    """The changes of a hub in the current minute, in its row. They are under no MAC: a limit is no protection against SQL.

    Args:
        row: the row of the hub, locked.
        now: Unix seconds.
        is_limited: False if a person makes the changes: they are neither limited nor counted.

    Attributes:
        room: number of devices that it may still change.
    """

    def __init__(self, row: Hub, now: float, *, is_limited: bool = True) -> None:
        self._row, self._is_limited = row, is_limited
        self._limit = amesh_settings().HUB_MAX_PER_MINUTE
        start = stored_time(dt.datetime.fromtimestamp(now, dt.UTC))
        began = row.minute_at
        if began is None or not 0 <= (start - began).total_seconds() < _SECONDS:
            row.minute_at, row.minute_count = start, 0
        self.room = max(0, self._limit - row.minute_count) if is_limited else sys.maxsize

    def count(self, changed: int, *, is_held: bool) -> bool:
        """Count changes. Return True if it was reported before in this minute that some are held back.

        Args:
            changed: number of devices that were changed.
            is_held: True if others must wait.
        """
        was_reported = self._row.minute_count > self._limit
        if not self._is_limited:
            return was_reported
        self._row.minute_count += changed
        if is_held:
            self._row.minute_count = self._limit + 1
        return was_reported

    def left(self, now: float) -> int:
        """Return the seconds until the minute is over, at least one."""
        began = self._row.minute_at
        if began is None:
            return 1
        start = stored_time(dt.datetime.fromtimestamp(now, dt.UTC))
        return max(1, _SECONDS - int((start - began).total_seconds()))
