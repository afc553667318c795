"""When a device was last seen: collected in memory, written now and then, after the response. Never fails a request."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from amesh_django.conf import amesh_settings
from amesh_django.models import Device, DeviceActivity
from amesh_django.trust.database import database

from . import VerifiedDevice

logger = logging.getLogger("amesh_django.activity")

#: Least time between two writes of one process, seconds; what comes in between is written together.
_PAUSE = 0.05
_BATCH = 500

_lock = threading.Lock()
_written: dict[int, float] = {}
_pending: dict[int, Any] = {}
_last_flush = 0.0


def seen(device: VerifiedDevice) -> None:
    """Note that a device was let in now."""
    interval = amesh_settings().LAST_SEEN_SECONDS
    if not interval or device.pk is None or device.pk in _pending:
        return
    if time.monotonic() - _written.get(device.pk, -1e9) >= interval:
        _pending[device.pk] = timezone.now()


def flush_after_request(**kwargs: Any) -> None:
    """Write what was noted, a few times a second at most; connected to ``request_finished``."""
    if _pending and time.monotonic() - _last_flush >= _PAUSE:
        flush()


def flush() -> None:
    """Write what was noted."""
    global _last_flush
    with _lock:
        _last_flush = now = time.monotonic()
        moments = dict(list(_pending.items())[:_BATCH])
        for pk in moments:
            _pending.pop(pk, None)
            _written[pk] = now
    if not moments:
        return
    using = database()
    connection = connections[using]
    unique = None if connection.vendor == "mysql" else ["device"]
    try:
        there = Device.objects.using(using).filter(pk__in=list(moments)).values_list("pk", flat=True)
        rows = [DeviceActivity(device_id=pk, last_seen_at=moments[pk]) for pk in there]
        DeviceActivity.objects.using(using).bulk_create(
            rows, update_conflicts=True, update_fields=["last_seen_at"], unique_fields=unique
        )
    except (DatabaseError, InterfaceError) as error:  # a device purged meanwhile, a database that is down
        logger.warning("Last seen of %d devices was not written: %s", len(moments), type(error).__name__)
    connection.close_if_unusable_or_obsolete()  # Django's own receiver of request_finished has run before


def reset() -> None:
    """Forget what was noted. For tests."""
    _pending.clear()
    _written.clear()
