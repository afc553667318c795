"""Changes: the one method through which every change of the sealed devices goes, in one transaction, with the seal row locked."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from amesh_django.models import AllowListChange, AllowListSeal, Device, DeviceGroup
from amesh_django.spelling import manage_py
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from .database import is_conflict, read_for_itself
from .groups import groups_digest
from .sealing import BATCH_SIZE, Epoch, SealRow, is_counted_controller, is_revoked, journal_row, now, row_values
from .snapshot import VerifiedList
from .verified import UNREADABLE, Basis, failure, hash_of

T = TypeVar("T")

logger = logging.getLogger("amesh_django.allow_list")

#: How often a change is tried again if another one was committed meanwhile.
MAX_ATTEMPTS = 30


class ConcurrentChange(Exception):
    """Another change was committed after this one began; nothing was written."""


class ChangeableList(VerifiedList):
    """Adds changes, each of which is sealed."""

    def change(self, by: str, work: Callable[[Change], T]) -> T:
        """Run *work* on an open change and seal the result. Either all of it happens, or nothing.

        Args:
            by: who makes the change, for the journal.
            work: reads and writes rows through the :class:`Change`; called again if another change was committed meanwhile.

        Raises:
            AllowListIntegrityFailure: the list does not match its seal, or is an older one that was restored; nothing was changed.
            AllowListBusy: other changes were committed all the time; nothing was changed.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used; nothing was changed.
        """
        self.unlock()
        if not connections[self.using].in_atomic_block and not self._lock.locked():
            with contextlib.suppress(AllowListIntegrityFailure):  # reported again below, under the lock of the seal
                self.snapshot()

        def attempt() -> T:
            before = self._trusted_seal()
            pending = Change(self, before, by)
            result = work(pending)
            if pending.changed:
                pending.write()
            return result

        try:
            return self._retried(attempt)
        except AllowListIntegrityFailure as error:
            if error.reason == "rows_mismatch":
                self.distrust()
            raise

    def _retried(self, work: Callable[[], T]) -> T:
        """Run *work* in one transaction, again if another change was committed meanwhile. Either all of it happens, or nothing.

        Raises:
            AllowListBusy: other changes were committed all the time.
        """
        is_nested = connections[self.using].in_atomic_block
        for attempt in range(MAX_ATTEMPTS):
            try:
                with transaction.atomic(using=self.using):
                    return work()
            except ConcurrentChange:
                pass
            except OperationalError as error:
                if not is_conflict(error):
                    raise
                if is_nested:  # the outer transaction must be tried again, and only its owner can do that
                    break
            time.sleep(min(0.5, 0.005 * 2**attempt) * (0.5 + secrets.randbelow(1000) / 1000))
        raise AllowListBusy(
            _("The list was busy with other changes; nothing was changed."), hint=_("Try again in a moment.")
        )

    def _trusted_seal(self) -> SealRow:
        """Return the locked seal, after it was verified that no change from outside Django would be sealed with this one.

        Raises:
            ConcurrentChange: another process sealed the first devices just now.
        """
        row = self._lock_seal()
        # If there is no seal, there is nothing to lock: another process may add the first devices until our seal is written.
        first = self._first_seal() if row is None else row
        if row is None or row.touched or not self.is_genuine(row):
            self.verify_rows(row)
        if self.verify_age(row) != row:  # a change would make an old list the newest one
            raise ConcurrentChange
        return first

    def _lock_seal(self) -> SealRow | None:
        """Lock the seal row for the rest of the transaction, and return it. None if there is no list yet."""
        connection = connections[self.using]
        read_for_itself(connection)
        seals = AllowListSeal.objects.using(self.using).filter(pk=1)
        if not connection.features.has_select_for_update:
            seals.update(id=1)  # a write is what locks an SQLite database
            return self.read_seal()
        for _attempt in range(2):
            is_locked = bool(list(seals.select_for_update().values_list("pk")))
            row = self.read_seal()
            if is_locked or row is None:
                break  # otherwise the row was made between the two reads, and is not locked
        return row

    def _first_seal(self) -> SealRow:
        """Seal a list that has no seal yet as empty, so that there is a row to lock before anything else is done.

        Raises:
            ConcurrentChange: another process did so just now.
        """
        seal = self.make_seal(
            Epoch.new(), revision=0, total=0, count=0, controllers=0, groups="", r=secrets.token_bytes(MASK_BYTES)
        )
        try:
            with transaction.atomic(using=self.using):
                AllowListSeal.objects.using(self.using).create(id=1, **seal._asdict())
        except IntegrityError:
            raise ConcurrentChange from None
        return seal

    def replace_seal(self, before: SealRow, after: SealRow) -> None:
        """Write a new seal over the one that was read.

        Raises:
            ConcurrentChange: another seal is there.
        """
        seals = AllowListSeal.objects.using(self.using)
        if not seals.filter(pk=1, revision=before.revision, hmac=before.hmac).update(**after._asdict()):
            raise ConcurrentChange


class Change:
    """An open change. Rows and groups are changed through this object only, so that digests, counts and journal are kept up to date.

    Attributes:
        revision: revision of the list after this change.
        controllers: number of controllers that count towards the limit, as the seal will have it.
        controllers_before: that number before this change.
        changed: True if there is anything to write.
    """

    def __init__(self, sealed: ChangeableList, before: SealRow, by: str) -> None:
        self._sealed = sealed
        self._keyed = sealed.under(before)
        self._before = before
        self._by = by
        self._journal: list[AllowListChange] = []
        self._count = before.count
        #: What was written in this change: primary key → hash of the row; None for a row that was removed.
        self._written: dict[int, int | None] = {}
        self._total = self._keyed.sealed_total(before)
        self.revision = before.revision + 1
        self.controllers = self.controllers_before = before.controllers
        self._groups = before.groups
        self.changed = False

    def find(self, **conditions: Any) -> Device | None:
        """Return the row that meets *conditions*, compared with the one that was verified; None if there is none.

        Args:
            conditions: ``device_id`` or ``public_key``.

        Raises:
            AllowListIntegrityFailure: the row was changed or removed outside Django.
        """
        found = self.select(**conditions)
        if found:
            return found[0]
        device_id = conditions.get("device_id")
        if device_id is not None and self._basis.has_id(device_id) and not self._has_removed:
            raise self._tampered()
        return None

    def select(self, **conditions: Any) -> list[Device]:
        """Return the rows that meet *conditions*, each compared with the one that was verified.

        To find rows that exist or not, name public keys (``public_key``, ``public_key__in``): one that is missing although it was
        verified is noticed.

        Raises:
            AllowListIntegrityFailure: a row was changed or removed outside Django.
        """
        try:
            found = list(self._rows().filter(**conditions))
        except UNREADABLE:
            raise self._tampered() from None
        for device in found:
            self._check(device)
        keys = conditions.get("public_key__in", [conditions["public_key"]] if "public_key" in conditions else [])
        missing = {*keys} - {device.public_key for device in found}
        if any(self._basis.has_key(decode_public_key(key)) for key in missing) and not self._has_removed:
            raise self._tampered()
        return found

    @property
    def _has_removed(self) -> bool:
        """True if this change has removed a row, so that a row that was verified may be missing."""
        return None in self._written.values()

    def replaced_by(self, device_id: str) -> list[Device]:
        """Return the rows of the keys that a device has replaced, directly or not, and that are still valid.

        Which rows these are, the verified list says: a row that was changed outside Django could not be found by its columns.

        Raises:
            AllowListIntegrityFailure: one of the rows was changed or removed outside Django.
        """
        names, found = [device_id], []
        for name in names:  # grows
            for pk in self._basis.replaced_by(name):
                rows = self.select(pk=pk)
                if not rows:
                    raise self._tampered()
                if not is_revoked(row_values(rows[0])):  # in this change
                    names.append(rows[0].device_id)
                    found += rows
        return found

    def _check(self, device: Device) -> None:
        expected = self._written[device.pk] if device.pk in self._written else self._basis.row_hash(device.pk)
        if expected is None or hash_of(self._keyed, device) != expected:
            raise self._tampered()

    def _tampered(self) -> AllowListIntegrityFailure:
        error = failure("rows_mismatch")
        logger.critical("%s", error.text(manage_py))
        return error

    @functools.cached_property
    def _basis(self) -> Basis:
        return self._sealed.basis(self._before)

    def _rows(self) -> QuerySet[Device]:
        """Return a query set of all rows. It can write, which only this class does."""
        return QuerySet(Device, using=self._sealed.using)

    def _account(self, device: Device, sign: int) -> None:
        values = row_values(device)
        row_hash = self._keyed.hash_row(values)
        self._written[device.pk] = row_hash if sign > 0 else None
        self._total += sign * row_hash
        self._count += sign
        self.controllers += sign * is_counted_controller(values)
        self.changed = True

    def _record(self, device: Device, action: str) -> None:
        self._journal.append(
            self._keyed.journal_line(
                revision=self.revision,
                device_id=device.device_id,
                action=action,
                row=journal_row(row_values(device)),
                by=self._by,
                at=now(),
            )
        )

    def insert(self, devices: Iterable[Device]) -> None:
        """Add rows."""
        batch: list[Device] = []
        for device in devices:
            device.revision = self.revision
            batch.append(device)
        highest = self._rows().order_by("-id").values_list("id", flat=True).first() or 0
        for start in range(0, len(batch), BATCH_SIZE):
            self._rows().bulk_create(batch[start : start + BATCH_SIZE])
        if any(device.pk is None for device in batch):  # a database that does not return the keys of many rows (MySQL)
            keys = dict(self._rows().filter(id__gt=highest).values_list("public_key", "id"))
            for device in batch:
                device.pk = keys[device.public_key]
        for device in batch:
            self._account(device, 1)
            self._record(device, AllowListChange.Action.ADDED)

    def update(self, device: Device, action: str = AllowListChange.Action.CHANGED, **columns: Any) -> Device:
        """Change columns of a row that was read inside this change."""
        self._check(device)
        self._account(device, -1)
        for name, value in columns.items():
            setattr(device, name, value)
        device.revision = self.revision
        self._rows().filter(pk=device.pk).update(revision=self.revision, **columns)
        self._account(device, 1)
        self._record(device, action)
        return device

    def delete(self, device: Device) -> None:
        """Remove a row for good."""
        self._check(device)
        self._record(device, AllowListChange.Action.PURGED)
        self._account(device, -1)
        self._rows().filter(pk=device.pk).delete()

    def groups(self) -> dict[str, DeviceGroup]:
        """Return all groups by name, compared with the digest under the seal.

        Raises:
            AllowListIntegrityFailure: a group was changed outside Django.
        """
        found = list(self._group_rows())
        if groups_digest((group.name, group.scopes_json) for group in found) != self._groups:
            raise self._tampered()
        return {group.name: group for group in found}

    def put_group(self, name: str, scopes: Iterable[str]) -> None:
        """Make a group, or replace the scopes of one."""
        text = json.dumps(sorted(set(scopes)))
        if name in self.groups():
            self._group_rows().filter(name=name).update(scopes_json=text)
        else:
            self._group_rows().bulk_create([DeviceGroup(name=name, scopes_json=text)])
        self._groups_changed()

    def delete_group(self, name: str) -> None:
        """Remove a group. Its members must be changed first: a device that names a group gets its scopes if it is made again."""
        self.groups()
        self._group_rows().filter(name=name).delete()
        self._groups_changed()

    def _groups_changed(self) -> None:
        self._groups = groups_digest(self._keyed.groups())
        self.changed = True

    def _group_rows(self) -> QuerySet[DeviceGroup]:
        return QuerySet(DeviceGroup, using=self._sealed.using)

    def write(self) -> None:
        """Write the journal and the new seal.

        Raises:
            ConcurrentChange: the seal is not the one that this change began with.
        """
        self._sealed.write_journal(self._journal)
        after = self._keyed.make_seal(
            self._keyed.epoch_after(self._before),
            revision=self.revision,
            total=self._total % MODULUS,
            count=self._count,
            controllers=self.controllers,
            groups=self._groups,
            r=secrets.token_bytes(MASK_BYTES),
        )
        self._sealed.replace_seal(self._before, after)
        self._sealed.remember_on_commit(after)
