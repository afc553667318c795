"""Refused requests in the audit log: counted in this process in groups, and written as one event for each group, a few at a time.

An attacker can send any number of requests with any keys from many addresses. So a process counts at most a thousand groups in a
minute, and writes at most as many events. What is beyond that is in the group ``other``.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from django.db import connections
from django.http import HttpRequest

from amesh_django.models import AuditEvent
from amesh_django.relay.addresses import LOCAL, network
from amesh_django.trust.chain import Actor
from amesh_django.trust.database import database
from authmesh.protocol.errors import RequestError

from .recording import record_all

#: Groups that are counted in a minute, and events that are written in it.
MAX_GROUPS = 1000
#: Seconds between two times at which the counts are written.
FLUSH_SECONDS = 10.0
_MINUTE = 60.0
#: Events of a minute that are kept for what is beyond: one each time that the counts are written.
_KEPT = int(_MINUTE / FLUSH_SECONDS) + 1


class Group(NamedTuple):
    """What one event counts.

    Attributes:
        reason: why the requests were refused, as in the log; ``other`` for all that is beyond the limit.
        device_id: the device, or ``unknown``.
        address: the network of the clients.
    """

    reason: str
    device_id: str
    address: str


UNKNOWN = "unknown"
OTHER = Group("other", UNKNOWN, "")


class Refusals:
    """The refused requests of this process that are not written yet.

    Args:
        write: called with groups, and the number of requests of each.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, write: Callable[[list[tuple[Group, int]]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: Counter[Group] = Counter()
        self._known: set[Group] = set()
        self._reasons: set[str] = set()
        self._events = 0
        self._minute_ends = self._due_at = clock()

    def count(self, group: Group) -> None:
        """Count a refused request."""
        now = self._clock()
        with self._lock:
            if now >= self._minute_ends:
                self._minute_ends = now + _MINUTE
                self._known.clear()
                self._reasons.clear()
                self._events = 0
            if group not in self._known:
                if len(self._known) >= MAX_GROUPS:
                    group = OTHER
                else:
                    self._known.add(group)
            self._pending[group] += 1
            if group.reason not in self._reasons and len(self._reasons) < MAX_GROUPS:
                self._reasons.add(group.reason)
                self._due_at = min(self._due_at, now)  # the first of a kind is written at once

    @property
    def is_due(self) -> bool:
        """True if there is something to write now."""
        return bool(self._pending) and self._clock() >= self._due_at

    def flush(self) -> None:
        """Write what was counted, as events of this minute that are left. The rest is added up."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
            self._due_at = self._clock() + FLUSH_SECONDS
            others = pending.pop(OTHER, 0)
            written = pending.most_common(max(0, MAX_GROUPS - _KEPT - self._events))
            others += sum(pending.values()) - sum(times for _group, times in written)
            if others and self._events + len(written) < MAX_GROUPS:
                written.append((OTHER, others))
            elif others:
                self._pending[OTHER] = others
            self._events += len(written)
        if written:
            self._write(written)


def group_of(request: HttpRequest, error: RequestError) -> Group:
    """Return the group of a refused request. A device that is not in the list is unknown: anyone can make keys and their IDs."""
    address = network(str(request.META.get("REMOTE_ADDR", ""))) or LOCAL
    if "/" not in address and address != LOCAL:
        address = str(ipaddress.ip_network(f"{address}/24", strict=False))
    device_id = error.device_id if error.reason != "unknown_device" else None
    return Group(error.reason, device_id or UNKNOWN, address)


def _record(counts: list[tuple[Group, int]]) -> None:
    record_all(
        [
            {
                "kind": AuditEvent.Kind.REFUSAL,
                "by": Actor("amesh", "system"),
                "device_id": group.device_id if group.device_id != UNKNOWN else "",
                "address": group.address,
                "reason_code": group.reason,
                "data": {"times": times},
            }
            for group, times in counts
        ]
    )


_refusals = Refusals(_record)


def on_refused(*, request: HttpRequest, error: RequestError, **kwargs: Any) -> None:
    """Count a refused request. Receiver of ``request_refused``."""
    _refusals.count(group_of(request, error))


def flush_after_request(**kwargs: Any) -> None:
    """Write the counts if it is time. Receiver of ``request_finished``."""
    if _refusals.is_due:
        _refusals.flush()
        with suppress(RuntimeError):  # of pytest-django, in a test that may not use the database
            connections[database()].close_if_unusable_or_obsolete()  # Django's own receiver of request_finished ran before


def reset() -> None:
    """Forget the counts. For tests, and in a forked child, whose parent writes them."""
    global _refusals
    _refusals = Refusals(_record)


os.register_at_fork(after_in_child=reset)
