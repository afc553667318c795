"""When and where a device was last seen: collected in memory, and written after a response. A failure here never fails a request."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from django.db import DatabaseError, InterfaceError, connections
from django.http import HttpRequest
from django.utils import timezone

from amesh_django.conf import amesh_settings
from amesh_django.models import Device, DeviceActivity
from amesh_django.trust.database import database
from authmesh.protocol.display import clean_line

from .types import VerifiedDevice

logger = logging.getLogger("amesh_django.activity")

#: Minimum seconds between two writes of one process. Devices seen in between are written together.
_PAUSE = 0.05
_BATCH = 500
_COLUMNS = ("last_seen_at", "address", "route", "client")

_lock = threading.Lock()
_written: dict[int, float] = {}
_pending: dict[int, DeviceActivity] = {}
_last_flush = 0.0


def seen(device: VerifiedDevice, request: HttpRequest, route: str) -> None:
    """Note that a device was authenticated now.

    Args:
        device: the verified device. A device without a database row is ignored.
        request: its request.
        route: the route of the view, or an empty text.
    """
    interval = amesh_settings().LAST_SEEN_SECONDS
    if not interval or device.pk is None or device.pk in _pending:
        return
    if time.monotonic() - _written.get(device.pk, -1e9) >= interval:
        address, client = (str(request.META.get(name, "")) for name in ("REMOTE_ADDR", "HTTP_USER_AGENT"))
        _pending[device.pk] = DeviceActivity(
            device_id=device.pk,
            last_seen_at=timezone.now(),
            address=clean_line(address)[:45],
            route=clean_line(route)[:200],
            client=clean_line(client)[:100],
        )


def flush_after_request(**kwargs: Any) -> None:
    """Write the notes, a few times a second at most. Receiver of ``request_finished``."""
    if _pending and time.monotonic() - _last_flush >= _PAUSE:
        flush()


def flush() -> None:
    """Write the notes to the database. If that fails, the notes are dropped and a warning is logged."""
    global _last_flush
    with _lock:
        _last_flush = now = time.monotonic()
        notes = dict(list(_pending.items())[:_BATCH])
        for pk in notes:
            _pending.pop(pk, None)
            _written[pk] = now
    if not notes:
        return
    using = database()
    connection = connections[using]
    unique = None if connection.vendor == "mysql" else ["device"]
    try:
        existing = Device.objects.using(using).filter(pk__in=list(notes)).values_list("pk", flat=True)
        DeviceActivity.objects.using(using).bulk_create(
            [notes[pk] for pk in existing], update_conflicts=True, update_fields=_COLUMNS, unique_fields=unique
        )
    except (DatabaseError, InterfaceError) as error:  # a device was purged meanwhile, or the database is down
        logger.warning("Last seen of %d devices was not written: %s", len(notes), type(error).__name__)
    connection.close_if_unusable_or_obsolete()  # Django's own receiver of request_finished ran before


def reset() -> None:
    """Forget all notes. For tests."""
    _pending.clear()
    _written.clear()
