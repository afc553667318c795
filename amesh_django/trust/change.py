"""The one function through which every change of the sealed devices goes: one transaction, the seal row locked."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import QuerySet
from django.utils import timezone

from amesh_django.models import AllowListChange, AllowListSeal, Device
from authmesh.protocol.errors import AllowListBusy
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from . import rollback, snapshot
from .keys import SealKeys, seal_keys
from .sealing import (
    SealRow,
    hash_row,
    is_active_controller,
    journal_mac,
    journal_row,
    make_seal,
    read_seal,
    row_values,
    seal_is_genuine,
    total_of,
)

T = TypeVar("T")

#: How often a change is tried again when another one got in between.
ATTEMPTS = 30
BATCH = 1000


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """Text as every database keeps it: no NUL, no lone surrogate."""
    return _UNSTORABLE.sub("\ufffd", text)


class Lost(Exception):
    """Another change got in between; nothing was written."""


def now() -> dt.datetime:
    """The time for device rows, in milliseconds, as every database keeps it."""
    moment = timezone.now()
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class Change:
    """An open change: what happens to rows goes through here, so that digest, counts and journal keep up.

    Attributes:
        revision: of the list after this change.
        controllers: active controllers as they stand now, under the seal.
    """

    def __init__(self, using: str, keys: SealKeys, seal: SealRow, by: str) -> None:
        self.using = using
        self._keys = keys
        self._by = storable(by)[:150]
        self._journal: list[AllowListChange] = []
        self.revision = seal.revision + 1
        self.controllers = seal.controllers
        self._count = seal.count
        self._total = total_of(keys, seal)
        self.changed = False

    def rows(self) -> QuerySet[Device]:
        """A query set that may write; nothing outside this class uses one."""
        return QuerySet(Device, using=self.using)

    def _account(self, device: Device, sign: int) -> None:
        values = row_values(device)
        self._total += sign * hash_row(self._keys, values)
        self._count += sign
        self.controllers += sign * is_active_controller(values)
        self.changed = True

    def _record(self, device: Device, action: str) -> None:
        line = AllowListChange(
            revision=self.revision,
            device_id=device.device_id,
            action=action,
            at=now(),
            by=self._by,
            row=journal_row(row_values(device)),
        )
        line.mac = journal_mac(self._keys, line)
        self._journal.append(line)

    def insert(self, devices: Iterable[Device]) -> None:
        """Add rows."""
        batch: list[Device] = []
        for device in devices:
            device.revision = self.revision
            batch.append(device)
        highest = self.rows().order_by("-id").values_list("id", flat=True).first() or 0
        for start in range(0, len(batch), BATCH):
            part = batch[start : start + BATCH]
            self.rows().bulk_create(part)
        if any(device.pk is None for device in batch):  # a database that does not return the keys of many rows (MySQL)
            keys = dict(self.rows().filter(id__gt=highest).values_list("public_key", "id"))
            for device in batch:
                device.pk = keys[device.public_key]
        for device in batch:
            self._account(device, 1)
            self._record(device, AllowListChange.Action.ADDED)

    def update(self, device: Device, action: str = AllowListChange.Action.CHANGED, **columns: Any) -> Device:
        """Change columns of a row that was read inside this change."""
        self._account(device, -1)
        for name, value in columns.items():
            setattr(device, name, value)
        device.revision = self.revision
        self.rows().filter(pk=device.pk).update(revision=self.revision, **columns)
        self._account(device, 1)
        self._record(device, action)
        return device

    def delete(self, device: Device) -> None:
        """Remove a row for good."""
        self._record(device, AllowListChange.Action.PURGED)
        self._account(device, -1)
        self.rows().filter(pk=device.pk).delete()

    def write(self, before: SealRow) -> None:
        """Seal what was changed.

        Raises:
            Lost: the seal is not the one that this change began with.
        """
        AllowListChange.objects.using(self.using).bulk_create(self._journal, batch_size=BATCH)
        after = make_seal(
            self._keys,
            revision=self.revision,
            total=self._total % MODULUS,
            count=self._count,
            controllers=self.controllers,
            r=secrets.token_bytes(MASK_BYTES),
        )
        write_seal(self.using, before, after)
        rollback.remember_on_commit(self.using, self._keys, after)


def write_seal(using: str, before: SealRow, after: SealRow) -> None:
    """Put the new seal in the place of the one that was read.

    Raises:
        Lost: another one stands there.
    """
    seals = AllowListSeal.objects.using(using)
    if not seals.filter(pk=1, revision=before.revision, hmac=before.hmac).update(**after._asdict()):
        raise Lost


def first_seal(using: str) -> SealRow:
    """Seal a list that has no seal yet as empty, so that there is a row to lock before anything is done.

    Raises:
        Lost: another process did so just now.
    """
    seal = make_seal(seal_keys(), revision=0, total=0, count=0, controllers=0, r=secrets.token_bytes(MASK_BYTES))
    try:
        with transaction.atomic(using=using):
            AllowListSeal.objects.using(using).create(id=1, **seal._asdict())
    except IntegrityError:
        raise Lost from None
    snapshot.mark_dirty(connections[using])
    return seal


def lock_seal(using: str) -> SealRow | None:
    """Take the lock of the list for the rest of the transaction, and read the seal."""
    seals = AllowListSeal.objects.using(using).filter(pk=1)
    if not connections[using].features.has_select_for_update:
        seals.update(id=1)  # a write is what locks an SQLite database
        return read_seal(using)
    for _ in range(2):
        is_locked = bool(list(seals.select_for_update().values_list("pk")))
        row = read_seal(using)
        if is_locked or row is None:
            break  # else it was made between the two reads, and is not locked
    return row


def _trusted_seal(using: str) -> SealRow:
    """The locked seal, once it is sure that no change past the app would be sealed along.

    Raises:
        Lost: another process sealed the first devices just now.
    """
    row = lock_seal(using)
    # Where there is none there is nothing to lock: another process may add the first devices at any moment, until ours stands.
    first = first_seal(using) if row is None else row
    if row is None or row.touched or not seal_is_genuine(seal_keys(), row):
        snapshot.verify_rows(using, row)
    if snapshot.verify_age(using, row) != row:  # a change would make it the newest list
        raise Lost
    return first


def _is_conflict(error: OperationalError) -> bool:
    """True for what goes away when the transaction is tried again: a lock, a deadlock, a serialization failure."""
    cause = error.__cause__
    code = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
    text = str(error).lower()
    return code in ("40001", "40P01", "55P03") or "locked" in text or "deadlock" in text or "lock wait" in text


def retried(using: str, work: Callable[[], T]) -> T:
    """Run *work* in one transaction, again where another change got in between; all of it happens, or nothing.

    Raises:
        AllowListBusy: other changes kept getting in between.
    """
    nested = connections[using].in_atomic_block
    for attempt in range(ATTEMPTS):
        try:
            with transaction.atomic(using=using):
                return work()
        except Lost:
            pass
        except OperationalError as error:
            if not _is_conflict(error):
                raise
            if nested:  # the transaction around this one has to be tried again, and that is not ours to do
                break
        time.sleep(min(0.5, 0.005 * 2**attempt) * (0.5 + secrets.randbelow(1000) / 1000))
    raise AllowListBusy("The list was busy with other changes; nothing was changed. Try again.")


def change(using: str, by: str, work: Callable[[Change], T]) -> T:
    """Run *work* on an open change and seal the result; all of it happens, or nothing.

    Args:
        using: database alias.
        by: who changes it, for the journal.
        work: reads and writes rows through the :class:`Change`; called again if another change got in between.

    Raises:
        AllowListIntegrityFailure: the list does not match its seal, or is an older one that was put back; nothing was changed.
        AllowListBusy: other changes kept getting in between.
    """
    keys = seal_keys()

    def attempt() -> T:
        before = _trusted_seal(using)
        pending = Change(using, keys, before, by)
        result = work(pending)
        if pending.changed:
            pending.write(before)
            snapshot.mark_dirty(connections[using])
        return result

    return retried(using, attempt)
