"""Changes: the one method through which every change of the sealed devices goes, in one transaction, with the seal row locked."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from django.db import connections
from django.db.models import QuerySet

from amesh_django.models import AuditEvent, Device, DeviceGroup
from amesh_django.spelling import manage_py
from amesh_django.states import ROTATED
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from . import replaced
from .chain import new_event, texts_of
from .damage import UNREADABLE, reading
from .database import insert_rows
from .groups import groups_digest
from .hubs import HubRows
from .locking import LockableList
from .sealing import BATCH_SIZE, LogEnd, SealRow, is_counted_controller, is_revoked, row_values
from .verified import Basis, failure, hash_of

T = TypeVar("T")

logger = logging.getLogger("amesh_django.allow_list")

#: Maximum number of keys that one query looks up.
MAX_KEYS = 500
#: Kind of an event → column with the reason, if it is not that of a revocation.
_REASONS: dict[str, str] = {AuditEvent.Kind.DENY: "deny_reason", AuditEvent.Kind.SUSPEND: "suspend_reason"}


class ChangeableList(LockableList):
    """Adds changes, each of which is sealed."""

    def change(self, by: str, work: Callable[[Change], T]) -> T:
        """Run *work* on an open change and seal the result. Either all of it happens, or nothing.

        Args:
            by: who makes the change, for the audit log.
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


class Change:
    """An open change. Rows and groups are changed through this object only: digests, counts and audit log are kept up to date.

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
        self._events: list[AuditEvent] = []
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

    def with_ids(self, device_ids: Iterable[str]) -> dict[str, Device]:
        """Return the rows of many devices by device ID, each compared with the one that was verified.

        Raises:
            AllowListIntegrityFailure: a row was changed or removed outside Django.
        """
        names, found = list(dict.fromkeys(device_ids)), dict[str, Device]()
        for start in range(0, len(names), MAX_KEYS):
            part = names[start : start + MAX_KEYS]
            # A collation may ignore case.
            found.update((row.device_id, row) for row in self.select(device_id__in=part) if row.device_id in part)
        if not self._has_removed and (self._basis.ids & {*names}) - {*found}:
            raise self._tampered()
        return found

    def select(self, **conditions: Any) -> list[Device]:
        """Return the rows that meet *conditions*, each compared with the one that was verified.

        To find rows that exist or not, name public keys (``public_key``, ``public_key__in``): one that is missing although it was
        verified is noticed.

        Raises:
            AllowListIntegrityFailure: a row was changed or removed outside Django.
        """
        try:
            with reading():
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
            for row in self._verified(self._basis.replaced_by(name)):
                if not is_revoked(row_values(row)):  # in this change
                    names.append(row.device_id)
                    found.append(row)
        return found

    def members(self, group: str) -> list[Device]:
        """Return the rows of the devices in a group, also of revoked ones, as the verified list says it.

        Raises:
            AllowListIntegrityFailure: one of the rows was changed or removed outside Django.
        """
        return self._verified(self._basis.members(group))

    def _verified(self, pks: Sequence[int]) -> list[Device]:
        """Return rows that the verified list has."""
        found = []
        for start in range(0, len(pks), MAX_KEYS):
            found += self.select(pk__in=pks[start : start + MAX_KEYS])
        if len(found) != len(pks):
            raise self._tampered()
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
    def hubs(self) -> HubRows:
        """What hubs have said about keys. It is written with the change, also if no row of the list is changed."""
        return HubRows(self._sealed.using, self._sealed.all_keys, self._keyed.keys)

    @functools.cached_property
    def _basis(self) -> Basis:
        return self._sealed.basis(self._before)

    @functools.cached_property
    def _log_end(self) -> LogEnd:
        """The end of the audit log, locked."""
        return self._sealed.lock_log(self._keyed.keys, self._before.log_end)

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

    def _record(self, device: Device, kind: str) -> None:
        self._events.append(
            new_event(
                self._keyed.keys,
                kind,
                revision=self.revision,
                by=self._by,
                device_id=device.device_id,
                subject=device.friendly_name,
                text=getattr(device, _REASONS.get(kind, "revoke_reason")),
                data={"row": texts_of(row_values(device))},
            )
        )

    def lock_log(self) -> None:
        """Lock the end of the audit log now, so that no event comes until this change is committed."""
        _locked = self._log_end

    def record(self, kind: str, data: dict[str, Any], text: str = "") -> None:
        """Add an event about the log or the whole list.

        Args:
            kind: what the audit log calls it.
            data: what else is known.
            text: what happened, in words.
        """
        keys = self._keyed.keys
        self._events.append(new_event(keys, kind, revision=self.revision, by=self._by, text=text, data=data))
        self.changed = True

    def insert(self, devices: Iterable[Device], kind: str = AuditEvent.Kind.TRUST) -> None:
        """Add rows.

        Args:
            devices: the rows, not saved.
            kind: what the audit log calls it.
        """
        batch: list[Device] = []
        for device in devices:
            device.revision = self.revision
            batch.append(device)
        _locked = self._log_end  # before rows are written, so that they differ from their seal for as short as possible
        highest = self._rows().order_by("-id").values_list("id", flat=True).first() or 0
        insert_rows(self._rows(), batch, BATCH_SIZE)
        if any(device.pk is None for device in batch):  # a database that does not return the keys of many rows (MySQL)
            keys = dict(self._rows().filter(id__gt=highest).values_list("public_key", "id"))
            for device in batch:
                device.pk = keys[device.public_key]
        for device in batch:
            self._account(device, 1)
            self._record(device, kind)

    def update(self, device: Device, kind: str = AuditEvent.Kind.CHANGE, **columns: Any) -> Device:
        """Change columns of a row that was read inside this change.

        Args:
            device: the row.
            kind: what the audit log calls it.
            columns: column → new value.
        """
        self._check(device)
        _locked = self._log_end
        self._account(device, -1)
        for name, value in columns.items():
            setattr(device, name, value)
        device.revision = self.revision
        self._rows().filter(pk=device.pk).update(revision=self.revision, **columns)
        self._account(device, 1)
        self._record(device, kind)
        return device

    def delete(self, device: Device) -> None:
        """Remove a row for good."""
        self._check(device)
        self._record(device, AuditEvent.Kind.PURGE)
        self._account(device, -1)
        self._rows().filter(pk=device.pk).delete()

    def groups(self) -> dict[str, DeviceGroup]:
        """Return all groups by name, compared with the digest under the seal.

        Raises:
            AllowListIntegrityFailure: a group was changed outside Django.
        """
        try:
            with reading():
                found = list(self._group_rows())
            is_good = groups_digest((group.name, group.scopes_json) for group in found) == self._groups
        except UNREADABLE:
            is_good = False
        if not is_good:
            raise self._tampered()
        return {group.name: group for group in found}

    def put_group(self, name: str, scopes: Iterable[str]) -> None:
        """Make a group, or replace the scopes of one."""
        found = sorted(set(scopes))
        text = json.dumps(found)
        if name in self.groups():
            self._group_rows().filter(name=name).update(scopes_json=text)
        else:
            insert_rows(self._group_rows(), [DeviceGroup(name=name, scopes_json=text)], BATCH_SIZE)
        self._groups_changed(name, {"scopes": found})

    def delete_group(self, name: str) -> None:
        """Remove a group. Its members must be changed first: a device that names a group gets its scopes if it is made again."""
        self.groups()
        self._group_rows().filter(name=name).delete()
        self._groups_changed(name, {"removed": True})

    def _groups_changed(self, name: str, data: dict[str, Any]) -> None:
        self._groups = groups_digest(self._keyed.groups())
        self.changed = True
        kind = AuditEvent.Kind.GROUP
        self._events.append(
            new_event(self._keyed.keys, kind, revision=self.revision, by=self._by, subject=name, data=data)
        )

    def _group_rows(self) -> QuerySet[DeviceGroup]:
        return QuerySet(DeviceGroup, using=self._sealed.using)

    def _name_replaced(self) -> None:
        events = [event for event in self._events if event.kind in replaced.KINDS]
        found = replaced.keys_before((event.device_id for event in events), self._replaced_keys)
        for event in events:
            replaced.name_in(self._keyed.keys, event, found.get(event.device_id, ()))

    def _replaced_keys(self, names: Sequence[str]) -> list[Device]:
        """Return the rows of the keys that were replaced by one of some devices, also of those that were purged since."""
        found = []
        for start in range(0, len(names), MAX_KEYS):
            part = names[start : start + MAX_KEYS]
            found += self.select(revoked_by__in=part, revoke_reason=ROTATED)
        purged = replaced.purged_keys(self._sealed, names)
        return found + [row for row in purged if not self._basis.has_id(row.device_id)]

    def write(self) -> None:
        """Append the events to the audit log, and write the new seal.

        Raises:
            ConcurrentChange: the seal is not the one that this change began with.
        """
        keys, before = self._keyed.keys, self._before
        self._name_replaced()
        log_end = self._sealed.append(keys, [*self._sealed.begin(keys, before), *self._events], self._log_end)
        after = self._keyed.make_seal(
            self._keyed.epoch_after(before),
            log_end,
            revision=self.revision,
            total=self._total % MODULUS,
            count=self._count,
            controllers=self.controllers,
            groups=self._groups,
            r=secrets.token_bytes(MASK_BYTES),
        )
        self._sealed.replace_seal(before, after)
        self._sealed.write_end(keys, log_end)
        self._sealed.remember_on_commit(after)
        self._sealed.note_revocations_on_commit(keys, self._events)
