"""The head of the allow list: how far the servers have to come, and how far each is behind."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.db.models import BigIntegerField, Case, F, OuterRef, Subquery, When
from django.utils import timezone

from amesh_django.models import AuditEvent, Server
from amesh_django.states import ACTIVE
from amesh_django.trust import current_list
from amesh_django.trust.database import database
from amesh_django.trust.sealing import SealRow
from amesh_django.trust.verified import Snapshot, failure
from authmesh.protocol.allow_list import TARGET
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.keys import decode_public_key

#: Device ID of a server → its public key, as it was found last. To look for a device ID means to look at the whole list.
_keys: dict[str, bytes] = {}


class Head(NamedTuple):
    """The newest state of the allow list.

    Attributes:
        epoch: its epoch; empty if it has none yet.
        revision: its revision, which is the serial of its newest events.
    """

    epoch: str
    revision: int


class Lag(NamedTuple):
    """How far a server is behind.

    Attributes:
        revisions: changes of the list that it has not acknowledged; those of the whole list if it knows another epoch.
        seconds: age of the oldest of them; 0 if there is none.
    """

    revisions: int
    seconds: float


class Look(NamedTuple):
    """One look at the allow list, with which a message is made: the seal is read once for all of it.

    Attributes:
        seal: the seal, which is genuine; None if there is no list yet.
        snapshot: the verified list; None if the rows do not match the seal.
    """

    seal: SealRow | None
    snapshot: Snapshot | None

    @property
    def head(self) -> Head:
        """The head of the list."""
        return Head(self.seal.epoch, self.seal.revision) if self.seal is not None else Head("", 0)


def look() -> Look:
    """Look at the allow list.

    A list that does not match its seal has a head, too, because devices can be revoked in it. An older or forged one has none.

    Raises:
        AllowListIntegrityFailure: the seal is missing or forged, or the list is an older one or another one that was restored.
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed = current_list()
    try:
        snapshot = sealed.snapshot()
    except AllowListIntegrityFailure as error:
        if error.reason != "rows_mismatch":
            raise
        row = sealed.read_seal()
        if row is None or not sealed.is_genuine(row):
            raise failure("seal_mismatch") from None
        return Look(sealed.check_age(row)[0], None)
    return Look(snapshot.row, snapshot)


def head() -> Head:
    """Return epoch and revision of the allow list.

    Raises:
        AmeshError: as for :func:`look`.
    """
    return look().head


def is_dirty(server: Server, head: tuple[str, int]) -> bool:
    """Return True if a server lacks changes.

    Args:
        server: its row.
        head: as :func:`head` returns it.
    """
    epoch, revision = head
    return bool(epoch) and (server.epoch != epoch or server.acked < revision)


def is_ahead(server: Server, head: tuple[str, int]) -> bool:
    """Return True if a server has had more of this epoch than there was: an older list was restored here, and kept its epoch.

    What is changed now has serials that the server knows already, so it is not told of that. Once there are larger serials, it is told of these, and lacks
    what came before until the list is resealed.

    Args:
        server: its row.
        head: as :func:`head` returns it.
    """
    epoch, revision = head
    return bool(epoch) and (server.ahead_epoch == epoch or (server.epoch == epoch and server.acked > revision))


def note_ahead(server: Server, epoch: str) -> None:
    """Note that a server has had more of an epoch than there is. The numbers do not say that any more once the list has grown past it."""
    if server.ahead_epoch != epoch:
        Server.objects.using(database()).filter(pk=server.pk).update(ahead_epoch=epoch)


def public_key_of(device_id: str, snapshot: Snapshot | None = None) -> bytes | None:
    """Return the public key of a server, 33 bytes, or None if the allow list does not have it as a target that is trusted.

    In a list that does not match its seal, this is what the audit log says.

    Args:
        device_id: the server.
        snapshot: the verified list, if it was just read.

    Raises:
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed = current_list()
    try:
        known = (snapshot or sealed.snapshot()).by_key
    except AllowListIntegrityFailure:
        row = sealed.sealed_device(device_id)
        is_good = row is not None and row.role == TARGET and row.state == ACTIVE
        return decode_public_key(row.public_key) if row is not None and is_good else None
    key = _keys.get(device_id)  # only where to look first: what the list says counts
    device = known.get(key) if key is not None else None
    if device is None or device.device_id != device_id:
        key = next((one for one, row in [*known.items()] if row.device_id == device_id), None)
        device = known.get(key) if key is not None else None
    if key is None or device is None:
        return None
    _keys[device_id] = key
    is_good = device.role == TARGET and device.state(timezone.now().timestamp()) == ACTIVE
    return key if is_good else None


def trusted(device_ids: Iterable[str]) -> set[str]:
    """Return those device IDs that the allow list has as targets that are trusted, as :func:`public_key_of` says it.

    Raises:
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    wanted = set(device_ids)
    try:
        known = [*current_list().snapshot().by_key.values()]
    except AllowListIntegrityFailure:
        return {device_id for device_id in wanted if public_key_of(device_id) is not None}
    now = timezone.now().timestamp()
    return {
        device.device_id
        for device in known
        if device.device_id in wanted and device.role == TARGET and device.state(now) == ACTIVE
    }


def changed_after(revision: int, head: Head) -> dt.datetime | None:
    """Return when the first change after a revision was made, or None if the audit log does not have it.

    Args:
        revision: revision of the allow list.
        head: as :func:`head` returns it.
    """
    changes = AuditEvent.objects.using(database()).filter(revision__gt=revision, revision__lte=head.revision)
    return changes.order_by("revision").values_list("at", flat=True).first()


def lag(server: Server) -> Lag:
    """Return how far a server is behind.

    Raises:
        AmeshError: as for :func:`head`.
    """
    return lags([server], head(), timezone.now())[0]


def lags(rows: Sequence[Server], head: Head, now: dt.datetime) -> list[Lag]:
    """Return how far each server is behind. Takes one query.

    Args:
        rows: the servers.
        head: as :func:`head` returns it.
        now: the time.
    """
    behind = {row.pk for row in rows if is_dirty(row, head)}
    oldest: dict[int, dt.datetime | None] = {}
    if behind:
        # One row for each server: a revision may hold many events.
        changes = AuditEvent.objects.filter(revision__gt=OuterRef("after"), revision__lte=head.revision)
        after = Case(When(epoch=head.epoch, then=F("acked")), default=0, output_field=BigIntegerField())
        found = Server.objects.using(database()).filter(pk__in=behind).order_by().annotate(after=after)
        first = Subquery(changes.order_by("revision").values("at")[:1])
        oldest = dict(found.annotate(oldest=first).values_list("pk", "oldest"))
    return [_lag(row, oldest.get(row.pk), head, now) if row.pk in behind else Lag(0, 0.0) for row in rows]


def _lag(row: Server, oldest: dt.datetime | None, head: Head, now: dt.datetime) -> Lag:
    since = max(oldest, row.added_at) if oldest is not None else row.added_at
    after = row.acked if row.epoch == head.epoch else 0
    return Lag(head.revision - after, max(0.0, (now - since).total_seconds()))
