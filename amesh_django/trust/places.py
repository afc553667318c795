"""Places in the audit log, each in a row of its own beside the one that says where the log ends, and under a MAC of its own."""

from __future__ import annotations

import enum
import hmac

from django.db.models import QuerySet

from amesh_django.models import AuditSeal
from authmesh.protocol.multiset import encode_row

from .chain import ChainedRows, is_same
from .damage import each_row
from .keys import SealKeys
from .sealing import LogEnd


class Place(enum.IntEnum):
    """A place, by the primary key of its row. The end of the log has the first one."""

    #: The last event that was archived. The log begins after it.
    START = 2
    #: The event of the newest checkpoint.
    CHECKPOINT = 3

    @property
    def label(self) -> str:
        """The label of its MAC."""
        return _LABELS[self]


_LABELS = {Place.START: "amesh-audit-start-v1", Place.CHECKPOINT: "amesh-audit-checkpoint-place-v1"}


def read_place(rows: ChainedRows, place: Place) -> tuple[LogEnd, bool] | None:
    """Return number and link of the event at a place, and True if amesh wrote that; None if there is no such row."""
    for _pk, row in each_row(_rows(rows, place)):
        if row is None:  # it cannot be read
            return LogEnd(), False
        found = LogEnd(row.seq, row.link)
        return found, any(is_same(_mac(keys, place, found), row.mac) for keys in rows.all_keys)
    return None


def log_start(rows: ChainedRows) -> LogEnd:
    """Return the event after which the log begins: the last one that was archived. A row that amesh did not write says nothing."""
    found = read_place(rows, Place.START)
    return found[0] if found is not None and found[1] else LogEnd()


def write_place(rows: ChainedRows, keys: SealKeys, place: Place, event: LogEnd) -> None:
    """Write which event is at a place. Call it while the end of the log is locked.

    Args:
        rows: the list.
        keys: keys of the seal of the list.
        place: the place.
        event: number and link of the event.
    """
    columns = {"seq": event.seq, "link": event.link, "mac": _mac(keys, place, event)}
    AuditSeal.objects.using(rows.using).update_or_create(id=place.value, defaults=columns)


def forget_place(rows: ChainedRows, place: Place) -> None:
    """Remove the row of a place. Call it while the end of the log is locked."""
    _rows(rows, place).delete()


def _rows(rows: ChainedRows, place: Place) -> QuerySet[AuditSeal]:
    return AuditSeal.objects.using(rows.using).filter(pk=place.value)


def _mac(keys: SealKeys, place: Place, event: LogEnd) -> str:
    """Return the HMAC-SHA256, in hex, over the row of a place."""
    message = encode_row(place.label, keys.owner, str(event.seq), event.link)
    return hmac.digest(keys.chain, message, "sha256").hex()
