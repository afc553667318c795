"""Counting requests: in the memory of this process, and at the end of a request in the database."""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.conf import settings as django_settings
from django.db import InterfaceError, OperationalError, connections

from amesh_django.conf import problems
from amesh_django.signals import request_refused, request_routed
from amesh_django.trust.database import database
from authmesh.protocol.errors import RequestError

from . import pruning, writing
from .writing import Group

logger = logging.getLogger("amesh_django.usage")

#: Groups that are counted between two times at which they are written.
MAX_GROUPS = 2000
#: Seconds between two times at which the counts are written, and if there are as many groups as possible.
FLUSH_SECONDS = 10.0
FULL_SECONDS = 1.0
#: The reason of all that is beyond, if even the reasons are too many.
OTHER = "other"
_HOUR = 3600
_UID = "amesh_usage"


class Counts:
    """The requests of this process that are not written yet.

    Args:
        write: called with the number of requests of each group.
        clock: returns monotonic seconds.
        wall_clock: returns Unix seconds.
    """

    def __init__(
        self,
        write: Callable[[Counter[Group]], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._write = write
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._pending: Counter[Group] = Counter()
        self._due_at = self._due_if_full_at = clock()
        self._hour = (-1, dt.datetime.fromtimestamp(0, dt.UTC))

    def count(self, device_id: str, route: str, reason: str) -> None:
        """Count a request. Arguments as the attributes of :class:`.Group`."""
        group = Group(self._this_hour(), device_id, route, reason)
        with self._lock:
            times = self._pending.get(group)
            if times is not None:
                self._pending[group] = times + 1
            else:
                self._count(group, 1)

    def _this_hour(self) -> dt.datetime:
        number = int(self._wall_clock() // _HOUR)
        known, hour = self._hour
        if number != known:
            hour = dt.datetime.fromtimestamp(number * _HOUR, dt.UTC)
            self._hour = (number, hour)
        return hour

    def _count(self, group: Group, times: int) -> None:
        if group not in self._pending and len(self._pending) >= MAX_GROUPS:
            self._due_at = min(self._due_at, self._due_if_full_at)
            group = group._replace(device_id="", route="")
            if group not in self._pending and len(self._pending) >= 2 * MAX_GROUPS:
                group = group._replace(reason=OTHER if group.reason else "")
        self._pending[group] += times

    @property
    def is_due(self) -> bool:
        """True if there is something to write now."""
        return bool(self._pending) and self._clock() >= self._due_at

    def flush(self) -> None:
        """Write what was counted. If the database is down, it is counted for the next time.

        Raises:
            Exception: it could not be written, whatever the reason is.
        """
        with self._lock:
            pending, self._pending = self._pending, Counter()
            now = self._clock()
            self._due_at, self._due_if_full_at = now + FLUSH_SECONDS, now + FULL_SECONDS
        if not pending:  # another thread writes it
            return
        try:
            self._write(pending)
        except (OperationalError, InterfaceError):
            with self._lock:
                self._due_if_full_at = self._due_at
                for group, times in pending.items():
                    self._count(group, times)
            raise


_counts = Counts(writing.add)
#: The database to which this process has written last: at its end, it writes to no other one, as after the tests of a project.
_written_to: object = None


def on_routed(*, device: Any, route: str, **kwargs: Any) -> None:
    """Count an accepted request. Receiver of ``request_routed``."""
    _counts.count(device.device_id, route, "")


def on_refused(*, error: RequestError, **kwargs: Any) -> None:
    """Count a refused request. Receiver of ``request_refused``.

    Only a device in the list has a name. Of any other one, nothing is counted but the reason: anyone can make keys and their IDs.
    """
    is_known = error.device_id is not None and error.device_name is not None
    _counts.count(error.device_id or "" if is_known else "", "", error.reason)


def flush_after_request(**kwargs: Any) -> None:
    """Write the counts if it is time, and delete some that are old. Receiver of ``request_finished``. Never raises."""
    if not _counts.is_due:
        return
    global _written_to
    using = database()
    try:
        _counts.flush()
        _written_to = _name_of(using)
        pruning.prune_sometimes()
    except Exception as error:  # counting never fails a request
        logger.warning("Counted requests could not be written: %s", type(error).__name__)
    with suppress(RuntimeError):  # of pytest-django, in a test that may not use the database
        connections[using].close_if_unusable_or_obsolete()  # Django's own receiver of request_finished ran before


def flush_at_exit() -> None:
    """Write what was counted since, if this process has written to the same database before. Never raises."""
    with suppress(Exception):
        if _written_to is not None and _name_of(database()) == _written_to:
            _counts.flush()
            connections[database()].close()


def _name_of(using: str) -> object:
    return connections[using].settings_dict["NAME"]


def connect() -> None:
    """Count from now on, or stop if ``AMESH["COUNT_REQUESTS"]`` is False. With invalid settings, nothing is counted."""
    request_routed.disconnect(dispatch_uid=_UID)
    request_refused.disconnect(dispatch_uid=_UID)
    # Not amesh_settings(), which keeps what it reads: this is called before a project may be ready for that.
    if problems() or not getattr(django_settings, "AMESH", {}).get("COUNT_REQUESTS", True):
        return
    request_routed.connect(on_routed, dispatch_uid=_UID)
    request_refused.connect(on_refused, dispatch_uid=_UID)


def reset() -> None:
    """Forget the counts. For tests, and in a forked child, whose parent writes them."""
    global _counts, _written_to
    _counts = Counts(writing.add)
    _written_to = None
    pruning.reset()


os.register_at_fork(after_in_child=reset)
atexit.register(flush_at_exit)
