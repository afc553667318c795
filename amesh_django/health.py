"""Is this process ready to verify requests? For load balancers, which ask without a signature.

The answer is one word, so that it helps nobody who attacks. The log has the reason, whenever it changes. A result holds for a second, so
that many questions cost as much as one.
"""

from __future__ import annotations

import logging
import pkgutil
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, connections
from django.db.migrations.recorder import MigrationRecorder

from amesh_django import migrations
from amesh_django.fleet import freshness
from amesh_django.spelling import manage_py
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.verification.lookup import nonce_store
from authmesh.protocol.errors import AmeshError

__all__ = ["is_ready"]

logger = logging.getLogger("amesh_django.health")

_HOLDS_SECONDS = 1.0
#: Not a device ID, so that these nonces are apart from those of devices.
_NOBODY = "health"


class _Result(NamedTuple):
    """What was found, and the monotonic time until which it holds."""

    trouble: str
    until: float


_lock = threading.Lock()
_last: _Result | None = None
_migrated = False


def is_ready(clock: Callable[[], float] = time.monotonic) -> bool:
    """Return True if this process can verify requests.

    The migrations of the app are applied, the allow list matches its seal, its hubs were heard if ``AMESH["WHEN_STALE"]`` is ``refuse``, and the
    nonce store answers.

    Args:
        clock: returns seconds that never go back.
    """
    global _last
    with _lock:
        if _last is None or clock() >= _last.until:
            trouble, before = _trouble(), _last.trouble if _last is not None else ""
            if trouble != before:
                _log(trouble)
            _last = _Result(trouble, clock() + _HOLDS_SECONDS)
        return not _last.trouble


def _log(trouble: str) -> None:
    members = {"event": "not_ready" if trouble else "ready"}
    if trouble:
        logger.error("not_ready: %s", trouble, extra=members)
    else:
        logger.warning("ready: this process can verify requests again.", extra=members)


def _trouble() -> str:
    """Return why this process is not ready, or an empty string."""
    for check in (_migrations, _allow_list, freshness.ensure_fresh, _nonce_store):
        try:
            check()
        except AmeshError as error:
            return error.text(manage_py)
        except ImproperlyConfigured as error:
            return str(error)
        except (DatabaseError, InterfaceError) as error:
            return f"The database cannot be read ({type(error).__name__})."
    return ""


def _migrations() -> None:
    global _migrated
    if _migrated:  # nobody takes a migration back under a running process
        return
    applied = MigrationRecorder(connections[database()]).applied_migrations()
    shipped = sorted(module.name for module in pkgutil.iter_modules(migrations.__path__))
    missing = [name for name in shipped if ("amesh", name) not in applied]
    if missing:
        raise ImproperlyConfigured(f"The migration amesh.{missing[0]} is not applied. Run: manage.py migrate amesh")
    _migrated = True


def _allow_list() -> None:
    current_list().snapshot()


def _nonce_store() -> None:
    nonce_store().record(_NOBODY, secrets.token_urlsafe(16), 1)


def reset() -> None:
    """Forget the last result."""
    global _last, _migrated
    with _lock:
        _last, _migrated = None, False
