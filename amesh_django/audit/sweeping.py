"""Sweeping: what must be done all the time for the log. Any process of any host may do it, also several at once."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass

from django.utils import timezone

from amesh_django.spelling import manage_py
from amesh_django.trust import current_list
from authmesh.protocol.errors import AmeshError

from . import checkpoints, placing
from .checkpoints import Checkpoint
from .placing import Placed

logger = logging.getLogger("amesh_django.audit")

#: Seconds before a checkpoint is tried again that could not be made.
PAUSE_SECONDS = 60.0

_failed_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """What was done.

    Attributes:
        placed: number of events that got their place, and of those that get none because amesh did not write them.
        checkpoint: the checkpoint that was made, or None.
    """

    placed: Placed
    checkpoint: Checkpoint | None


def sweep(now: dt.datetime | None = None) -> Swept:
    """Place all events that wait, and make a checkpoint if the newest is older than an hour and events have come since.

    A checkpoint that cannot be made is logged, and stops nothing.

    Args:
        now: the time, as Django's ``timezone.now`` returns it. Defaults to that.

    Raises:
        AllowListBusy: the end of the log was locked all the time.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    global _failed_at
    moment = now or timezone.now()
    sealed = current_list()
    placed = placing.place_all(sealed)
    if _failed_at is not None and abs((moment - _failed_at).total_seconds()) < PAUSE_SECONDS:
        return Swept(placed, None)
    try:
        checkpoint = checkpoints.make(sealed, moment)
        _failed_at = None
    except AmeshError as error:  # such as a key with a PIN that nobody can type
        _failed_at, checkpoint = moment, None
        logger.error("No checkpoint of the audit log could be made: %s", error.text(manage_py))
    return Swept(placed, checkpoint)


def reset() -> None:
    """Forget that a checkpoint could not be made."""
    global _failed_at
    _failed_at = None
