"""Revoking in a list that does not match its seal: it always works, and it makes no other row trusted."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import Max, Q, QuerySet

from amesh_django.models import AuditEvent, Device
from amesh_django.states import ROTATED
from authmesh.device.allow_list import not_found
from authmesh.protocol.errors import AllowListIntegrityFailure, KeyStoreError
from authmesh.protocol.keys import decode_public_key, device_id
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from .chain import data_of, device_of, new_event, texts_of
from .change import ChangeableList
from .damage import UNREADABLE, each_row
from .database import insert_rows
from .marks import is_older, is_other
from .places import log_start
from .replaced import keys_before, name_in, purged_keys
from .sealing import (
    BATCH_SIZE,
    COLUMNS,
    LogEnd,
    SealRow,
    actor,
    is_counted_controller,
    is_revoked,
    now,
    row_values,
    storable,
)
from .triggers import MAX_TOUCHED
from .verified import Snapshot

logger = logging.getLogger("amesh_django.allow_list")

_MAX_REVISION = 2**62


#: Events about the whole list.
_OF_ALL = (AuditEvent.Kind.BEGIN, AuditEvent.Kind.RESEAL, AuditEvent.Kind.ARCHIVE)


@dataclass
class Sealed:
    """The rows as they were sealed according to the audit log.

    Attributes:
        is_complete: False if the log does not have all rows: those before it was begun, until they are resealed.
        rows: device ID → column → text.
        forged: number of events that amesh did not write.
    """

    is_complete: bool
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    forged: int = 0

    def follow(self, event: AuditEvent) -> None:
        """Apply a genuine event."""
        data = data_of(event)
        if event.kind in _OF_ALL:
            changed: dict[str, dict[str, str]] | None = data.get("rows")
            if changed is None:
                self.rows, self.is_complete = {}, False
                return
            self.is_complete = (
                self.is_complete or data.get("complete") is True
            )  # an archive has the rows that were before it
            self.rows.update(changed)
            for name in data["removed"]:
                self.rows.pop(name, None)
        elif event.kind == AuditEvent.Kind.PURGE:
            self.rows.pop(event.device_id, None)
        elif "row" in data:
            self.rows[event.device_id] = data["row"]


class RevocableList(ChangeableList):
    """Adds revoking in a list that is rejected, and what the audit log says about the rows as they were sealed."""

    def sealed_rows(self, seal: SealRow | None, *, device_id: str | None = None, is_newest: bool = True) -> Sealed:
        """Return the rows as they were sealed according to the audit log.

        Args:
            seal: the seal row, or None if there is none.
            device_id: read only events about this device. Defaults to all.
            is_newest: False to ignore events of later revisions than that of the seal.
        """
        if seal is not None and not seal.is_well_formed:
            seal = None
        is_begun = seal is None or seal.audit_seq > 0 or not seal.count
        found = Sealed(is_complete=is_begun and not log_start(self).seq)
        conditions = [Q(device_id=device_id) | Q(kind__in=_OF_ALL)] if device_id is not None else []
        if seal is not None and not is_newest:
            conditions.append(Q(revision__lte=seal.revision))
        for event in self.events(*conditions):
            if event is not None and self.is_genuine_event(event):
                found.follow(event)
            else:
                found.forged += 1
        return found

    def sealed_devices(self) -> list[Device]:
        """Return all devices as they were last sealed according to the audit log, not saved."""
        return [device_of(texts) for texts in self.sealed_rows(None).rows.values()]

    def sealed_device(self, device_id: str) -> Device | None:
        """Return a device as it was last sealed according to the audit log, not saved; None if the log does not have it."""
        texts = self.sealed_rows(None, device_id=device_id).rows.get(device_id)
        return device_of(texts) if texts is not None else None

    def revoke_anyway(self, device_ids: Sequence[str], *, reason: str, by: str) -> tuple[list[Device], bool]:
        """Revoke devices in a list that does not match its seal, or that is an old one: all of them, or none.

        Each row is written as it was sealed according to the audit log, revoked. The new seal differs from the one before in these rows
        only, so rows that were changed outside Django still do not match it. All processes verify all rows. An old list does not
        become the newest. The keys that a device has replaced, and those that have replaced it, are revoked with it.

        Returns:
            the devices, and True if the list matches its seal again because no other row was changed.

        Raises:
            DeviceNotFound: there is no such device, or it was revoked already; nothing was changed.
            AllowListBusy: other changes were committed all the time; nothing was changed.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used; nothing was changed.
        """
        self.unlock()
        kept = self._snapshot
        known = kept.row if kept is not None else None

        def work() -> tuple[list[Device], bool]:
            is_good, done = False, dict[str, Device]()
            for named in device_ids:
                names = [named]
                for name in names:  # grows
                    if name not in done:
                        newer, before = self._successors(name), self._replaced_by(name)
                        done[name], is_good = self._revoke_anyway(name, reason, by, known)
                        names += [*newer, *(row.device_id for row in before if not is_revoked(row_values(row)))]
            return [done[name] for name in device_ids], is_good

        result = self._retried(work)
        self.distrust(tell=False)
        return result

    def _successors(self, device_id: str) -> list[str]:
        """Return the device whose key has replaced one, as it was sealed, if it is trusted."""
        sealed = self.sealed_device(device_id)
        newer = (
            self.sealed_device(sealed.revoked_by) if sealed is not None and sealed.revoke_reason == ROTATED else None
        )
        return [newer.device_id] if newer is not None and not is_revoked(row_values(newer)) else []

    def _replaced_by(self, device_id: str) -> list[Device]:
        """Return the devices whose keys a device has replaced, as they were sealed or as they are now, also those that were purged."""
        kinds = (AuditEvent.Kind.REVOKE, AuditEvent.Kind.ROTATE)
        events = [
            event
            for event in self.events(kind__in=(*kinds, AuditEvent.Kind.ARCHIVE), data__contains=device_id)
            if event is not None and self.is_genuine_event(event)
        ]
        rows = Device.objects.using(self.using).filter(
            revoked_by=device_id, revoke_reason=ROTATED, revoked_at__gt=now()
        )
        found = {row.device_id: row for _pk, row in each_row(rows) if row is not None}
        archived = [row for event in events for row in data_of(event).get("rows", {}).items()]
        names = {event.device_id for event in events} | {
            name for name, row in archived if row["revoked_by"] == device_id
        }
        purged = {row.device_id: row for row in purged_keys(self, [device_id])}
        for name in {*names, *purged} - {*found, device_id, ""}:
            sealed = self.sealed_device(name) or purged.get(name)
            if sealed is not None and (sealed.revoked_by, sealed.revoke_reason) == (device_id, ROTATED):
                found[name] = sealed
        return list(found.values())

    def _keys_before(self, device_id: str) -> list[str]:
        """Return the hashes of the keys that a device has replaced and that are not accepted any more, as the audit log has them."""
        found = keys_before([device_id], lambda names: [row for name in names for row in self._replaced_by(name)])
        return found.get(device_id, [])

    def _revoke_anyway(self, device_id: str, reason: str, by: str, known: SealRow | None) -> tuple[Device, bool]:
        before = self._lock_seal()
        lost = self.lost_seal(before)
        if lost:
            before = None
        keyed = self.under(before)
        is_old = before is not None and self._is_old(before, known)
        sealed = self.sealed_device(device_id)
        same_key = Q(public_key=sealed.public_key) if sealed is not None else Q()
        rows = QuerySet[Device](Device, using=self.using).filter(Q(device_id=device_id) | same_key)
        is_over = sealed is None or is_revoked(row_values(sealed))
        if is_over and not rows.filter(Q(revoked_at=None) | Q(revoked_at__gt=now())).exists():
            raise not_found(device_id)
        revision = self._next_revision(before, is_old)
        revoked = {
            "revoked_at": now(),
            "revoked_by": actor(by),
            "revoke_reason": storable(reason),
            "revision": revision,
        }
        if sealed is None:  # it was added outside Django, or events were removed
            rows.update(**revoked)
            total, controllers, device = 0, 0, read_damaged(rows, device_id)
        else:
            old = row_values(sealed)
            device = sealed
            for name, value in revoked.items():
                setattr(device, name, value)
            self._restore(device, rows, revoked)
            values = row_values(device)
            total = keyed.hash_row(values) - keyed.hash_row(old)
            controllers = -int(is_counted_controller(old))
        event = new_event(
            keyed.keys,
            AuditEvent.Kind.REVOKE,
            revision=revision,
            by=by,
            device_id=device_id,
            subject=device.friendly_name,
            text=reason,
            data={**({"row": texts_of(row_values(device))} if sealed is not None else _key_of(device)), **lost},
        )
        name_in(keyed.keys, event, self._keys_before(device_id))
        log_end = self.extend(keyed.keys, [event], before.log_end if before is not None else LogEnd())
        self.note_revocations_on_commit(keyed.keys, [event])
        return device, before is not None and self._reseal_one(before, log_end, revision, total, controllers, is_old)

    def _is_old(self, row: SealRow, known: SealRow | None) -> bool:
        """Return True if the list is not known to be the newest. Then it must not become the newest."""
        if known is not None and (is_older(row.mark, known.mark) or is_other(row.mark, known.mark)):
            return True
        try:
            self.check_age(row)
        except (AllowListIntegrityFailure, KeyStoreError):
            return True
        return False

    def _highest_revision(self) -> int:
        """Return the highest revision in the audit log, but no number that cannot be counted further: amesh has not written that."""
        events = AuditEvent.objects.using(self.using).filter(revision__gte=0, revision__lt=_MAX_REVISION)
        return int(events.aggregate(found=Max("revision"))["found"] or 0)  # SQLite stores any number

    def _next_revision(self, before: SealRow | None, is_old: bool) -> int:
        if before is None:
            return 1 + self._highest_revision()
        return before.revision + (not is_old)

    def _restore(self, device: Device, rows: QuerySet[Device], revoked: Mapping[str, Any]) -> None:
        """Write the row of a device. If another row is in the way, only revoke those that are there."""
        columns = {name: getattr(device, name) for name in COLUMNS if name != "id"}
        all_rows = QuerySet[Device](Device, using=self.using)
        users = Device._meta.get_field("user").related_model._base_manager.using(self.using)
        if device.user_id is not None and not users.filter(pk=device.user_id).exists():
            columns["user_id"] = None
        pks = list(rows.values_list("pk", flat=True))
        try:
            with transaction.atomic(using=self.using):
                if not pks and all_rows.filter(pk=device.pk).exists():
                    insert_rows(all_rows, [Device(**columns)], BATCH_SIZE)
                elif not pks:
                    all_rows.bulk_create([Device(id=device.pk, **columns)])
                elif len(pks) == 1:
                    all_rows.filter(pk=pks[0]).update(**columns)
                else:
                    rows.update(**revoked)
        except DatabaseError:
            rows.update(**revoked)

    def _reseal_one(
        self, before: SealRow, log_end: LogEnd, revision: int, total: int, controllers: int, is_old: bool
    ) -> bool:
        """Replace the seal by one that differs by one row. Return True if the rows match it."""
        keyed = self.under(before)
        after = keyed.make_seal(
            keyed.epoch_after(before),
            log_end,
            revision=revision,
            total=(keyed.sealed_total(before) + total) % MODULUS,
            count=before.count,
            controllers=before.controllers + controllers,
            groups=before.groups,
            r=secrets.token_bytes(MASK_BYTES),
        )
        is_good = not is_old
        try:
            with transaction.atomic(using=self.using):
                Snapshot.build(self, after)
        except (AllowListIntegrityFailure, *UNREADABLE, DatabaseError):  # a row that cannot be read
            is_good = False
        if not is_good:  # every process must verify all rows
            after = after._replace(touched=max(before.touched, 0) % MAX_TOUCHED + 1)
        self.replace_seal(before, after)
        if not is_old:
            self.remember_on_commit(after)
        return is_good


def _key_of(device: Device) -> dict[str, str]:
    """Return the public key in a row that the audit log does not have, for the servers of a hub; nothing if it is not that of the device.

    Otherwise a row with the name of one device and the key of another could make people revoke that one.
    """
    try:
        is_its_own = device_id(decode_public_key(device.public_key)) == device.device_id
    except UNREADABLE:
        return {}
    return {"publicKey": device.public_key} if is_its_own else {}


def read_damaged(rows: QuerySet[Device], device_id: str) -> Device:
    """Return a row that was made outside Django. If it cannot be read, only its device ID is known."""
    found = next((row for _pk, row in each_row(rows.filter(device_id=device_id))), None)
    return found or Device(device_id=device_id, added_at=now())
