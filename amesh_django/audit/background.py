"""Verifying in the background: a thread of this process verifies a long log, and a cache says how far it has come.

The cache is that of the nonces, which all processes share. The thread renews its entry as it goes on: if the process ends, the entry
expires, and the log can be verified again. The result is an event, see :mod:`.verifications`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Final

from django.core.cache import BaseCache, caches
from django.db import connections

from amesh_django.conf import nonce_cache
from amesh_django.spelling import manage_py
from amesh_django.trust.database import database
from amesh_django.trust.sealing import LogEnd
from authmesh.protocol.errors import AmeshError

from .verifications import verify_and_record

logger = logging.getLogger("amesh_django.audit")

#: Seconds after which a verification that tells no progress any more is forgotten.
LIFE_SECONDS: Final = 300
#: Seconds for which the error is kept that ended a verification.
KEPT_SECONDS: Final = 3600
_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """A verification in the background.

    Attributes:
        by: the person who asked for it.
        since: time at which it began, in seconds since 1970.
        total: number of events when it began.
        done: number of events that were verified.
        error: the error that ended it; empty while it runs.
    """

    by: str
    since: float
    total: int
    done: int = 0
    error: str = ""


def running() -> Running | None:
    """Return the verification that runs, or that ended with an error in the last hour; None if there is none, or the cache is down."""
    try:
        return Running(**_cache().get(_key()))
    except Exception:  # whatever the cache raises: it only says how far a verification has come
        return None


def start(by: str, total: int, *, begin: LogEnd | None = None, clock: Callable[[], float] = time.time) -> bool:
    """Begin a verification in a thread of this process. Return False if one runs already.

    Args:
        by: who asks for it.
        total: number of events.
        begin: as for :func:`~amesh_django.audit.verifying.verify`.
        clock: returns the time.
    """
    forget_error()
    state = Running(str(by), clock(), total)
    if not _added(state):
        return False
    threading.Thread(target=_run, args=(by, state, begin), name="amesh-verify", daemon=True).start()
    return True


def forget_error() -> None:
    """Forget the error that ended the last verification: another one begins."""
    found = running()
    if found is not None and found.error:
        _forget()


def _run(by: str, state: Running, begin: LogEnd | None) -> None:
    told_at = 0.0

    def progress(done: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _STEP_SECONDS:
            told_at = now
            _tell(replace(state, done=done), LIFE_SECONDS)

    try:
        verify_and_record(by, begin=begin, progress=progress)
    except Exception as error:  # nobody waits for this thread: the page and the log say what happened
        text = error.text(manage_py) if isinstance(error, AmeshError) else type(error).__name__
        logger.error("The audit log could not be verified: %s", text)
        _tell(replace(state, error=text), KEPT_SECONDS)
    else:
        _forget()
    finally:
        connections.close_all()


def _added(state: Running) -> bool:
    try:
        return bool(_cache().add(_key(), asdict(state), LIFE_SECONDS))
    except Exception:  # without the cache, nobody sees the progress, and two may run at once
        return True


def _tell(state: Running, seconds: int) -> None:
    try:
        _cache().set(_key(), asdict(state), seconds)
    except Exception as error:
        logger.warning("The cache does not take the progress of a verification: %s", type(error).__name__)


def _forget() -> None:
    try:
        _cache().delete(_key())
    except Exception as error:
        logger.warning("The cache does not take the progress of a verification: %s", type(error).__name__)


def _cache() -> BaseCache:
    found: BaseCache = caches[nonce_cache()]
    return found


def _key() -> str:
    return f"amesh-verify-{database()}"
