"""The rows of pairings: what a page does with them, and what the process does that runs the ceremony.

That process alone writes what is under the MAC, each time on condition that the row still has the MAC from before. A page writes an
answer, the wish to cancel, and when it was seen. Each is one UPDATE with a condition, so that no order of events loses one.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.db.models import QuerySet

from amesh_django.models import PairingSession
from amesh_django.trust.database import database
from amesh_django.trust.sealing import actor, now
from authmesh.protocol.errors import AmeshError

from . import errors
from .chosen import Chosen
from .genuine import is_genuine, mac_of, read_answer, signed_answer

Step = PairingSession.Step

#: Steps after which nothing happens any more.
ENDS: Final = (Step.DONE, Step.FAILED, Step.CANCELED)
#: Seconds between two signs of life of the process that runs the ceremony.
HEARTBEAT_SECONDS: Final = 2.0
#: Seconds without one after which that process counts as gone. It ends the ceremony itself if it was held up for so long.
LOST_SECONDS: Final = 15.0
#: Seconds after which a pairing ends that nobody looks at.
ABANDONED_SECONDS: Final = 60.0
#: Seconds between two notes that a page was seen.
SEEN_SECONDS: Final = 5.0
#: Number of pairings that one person may have under way.
MAX_OPEN: Final = 5
_KEPT = dt.timedelta(days=1)


class Heard(NamedTuple):
    """What the pages have written.

    Attributes:
        is_canceled: True if the person has canceled.
        seen_at: when the page was seen last.
        answer: the digits that were typed, or None.
    """

    is_canceled: bool
    seen_at: dt.datetime
    answer: str | None


def _rows() -> QuerySet[PairingSession]:
    return PairingSession.objects.using(database())


# --- the page -------------------------------------------------------------------------------------------------------


def begin(*, owner: str, by: str, chosen: Chosen, relay: str) -> PairingSession:
    """Store a pairing that a person begins. Rows that are older than a day are deleted.

    Args:
        owner: primary key of the person, as text.
        by: their name.
        chosen: what the device gets.
        relay: address of the relay.

    Raises:
        TooManyPairings: the person has as many under way as they may have.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    moment = now()
    _rows().filter(begun_at__lt=moment - _KEPT).delete()
    if sum(row.owner == owner for row in under_way()) >= MAX_OPEN:
        raise errors.TooManyPairings()
    row = PairingSession(
        token=secrets.token_urlsafe(32),
        owner=owner,
        by=actor(by),
        begun_at=moment,
        seen_at=moment,
        chosen_json=chosen.to_json(),
        relay=relay,
    )
    row.mac = mac_of(row)
    row.save(using=database())
    return row


def find(token: str) -> PairingSession | None:
    """Return the pairing of that name, or None if there is none, or if it was changed outside Django.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    row = _rows().filter(token=token).first()
    return row if row is not None and row.token == token and is_genuine(row) else None


def under_way() -> list[PairingSession]:
    """Return the pairings of all people that have not ended, the oldest first."""
    rows = _rows().exclude(step__in=ENDS).filter(is_canceled=False).order_by("pk")[:1000]
    return [row for row in rows if ended(row) is None and is_genuine(row)]


def ended(row: PairingSession, moment: dt.datetime | None = None) -> AmeshError | None:
    """Return the reason why a pairing did not succeed; None if it did, or goes on.

    Args:
        row: the row.
        moment: the time. Defaults to now.
    """
    if row.step == Step.DONE:
        return None
    if row.step == Step.CANCELED:
        return errors.PairingCanceled()
    if row.step == Step.FAILED:
        return errors.from_json(row.error_json)
    moment = moment or now()
    since = (moment - (row.alive_at or row.begun_at)).total_seconds()
    if since <= LOST_SECONDS:
        return None
    if row.is_canceled:
        return errors.PairingCanceled()
    return errors.PairingLost() if row.alive_at is not None else errors.PairingNotTaken()


def cancel(row: PairingSession) -> bool:
    """Cancel a pairing. Return False if it has ended already. The process that runs the ceremony notices it at once."""
    return bool(_rows().filter(pk=row.pk).exclude(step__in=ENDS).update(is_canceled=True, answer=""))


def answer(row: PairingSession, digits: str) -> bool:
    """Pass on the verification code that a person has typed. Return False if nobody asks for it any more.

    Args:
        row: the row, as it was shown to the person.
        digits: six digits.
    """
    asked = _rows().filter(pk=row.pk, step=Step.CODE, mac=row.mac, is_canceled=False, answer="")
    return bool(asked.update(answer=signed_answer(row, digits)))


def note_seen(row: PairingSession) -> None:
    """Note that the person looks at the page."""
    moment = now()
    if row.step not in ENDS and abs((moment - row.seen_at).total_seconds()) >= SEEN_SECONDS:
        _rows().filter(pk=row.pk).update(seen_at=moment)


# --- the process that runs the ceremony ------------------------------------------------------------------------------


def claim(pk: int, host: str) -> PairingSession | None:
    """Take a pairing whose ceremony nobody has begun, or return None. If it is late for that, the page has said so.

    Args:
        pk: primary key of its row.
        host: name of this process.
    """
    moment = now()
    since = moment - dt.timedelta(seconds=LOST_SECONDS)
    free = _rows().filter(pk=pk, host="", step=Step.STARTING, begun_at__gt=since)
    if not free.update(host=host, alive_at=moment):
        return None
    row = _rows().get(pk=pk)
    return row if is_genuine(row) else None


def exchange(row: PairingSession, columns: Mapping[str, Any]) -> Heard:
    """Write what is new, and a sign of life if it is time for one. Return what the pages have written.

    Args:
        row: the row, as this process wrote it last.
        columns: the columns that change.

    Raises:
        PairingChanged: the row was changed or deleted by someone else.
        PairingLost: this process was held up for so long that the page has said that it is gone.
    """
    moment = now()
    silent = (moment - (row.alive_at or moment)).total_seconds()
    if silent > LOST_SECONDS:
        raise errors.PairingLost()
    if columns:
        _write(row, {**columns, "alive_at": moment})
    elif silent >= HEARTBEAT_SECONDS:
        row.alive_at = moment
        _rows().filter(pk=row.pk, mac=row.mac).update(alive_at=moment)
    found = _rows().filter(pk=row.pk, mac=row.mac).values_list("is_canceled", "seen_at", "answer").first()
    if found is None:
        raise errors.PairingChanged()
    is_canceled, seen_at, text = found
    typed = None
    if text:
        _rows().filter(pk=row.pk, answer=text).update(answer="")
        typed = read_answer(row, text)
        if typed is None:
            raise errors.PairingChanged()
    return Heard(is_canceled, seen_at, typed)


def is_wanted(row: PairingSession) -> bool:
    """Return True unless the person has canceled."""
    return _rows().filter(pk=row.pk, is_canceled=False).exists()


def finish(row: PairingSession, error: AmeshError | None) -> None:
    """Note how a pairing has ended. No code stays in the row.

    Args:
        row: the row, as this process wrote it last.
        error: the reason why it failed; None if it did not.
    """
    columns: dict[str, Any] = {"step": Step.DONE, "code": "", "ends_at": None, "answer": ""}
    if error is not None:
        step = Step.CANCELED if error.code == errors.PairingCanceled.code else Step.FAILED
        columns |= {"step": step, "error_code": error.code, "error_json": errors.to_json(error)}
    _write(row, columns)


def _write(row: PairingSession, columns: Mapping[str, Any]) -> None:
    for name, value in columns.items():
        setattr(row, name, value)
    mac = mac_of(row)
    _rows().filter(pk=row.pk, mac=row.mac).update(**columns, mac=mac)
    row.mac = mac
