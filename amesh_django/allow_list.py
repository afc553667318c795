"""The allow list in the database: the interface of the sealed file, plus users, revoked devices and purging."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from authmesh.device import AllowList, LocalDevice
from authmesh.device.allow_list import limit_reached, not_found
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry, Role
from authmesh.protocol.encoding import format_time, parse_time
from authmesh.protocol.errors import AllowListError, AllowListIntegrityFailure, InvalidInput, Run
from authmesh.protocol.keys import decode_public_key, encode_public_key
from authmesh.protocol.seal import canonical_json

from .decisions import (
    TRUSTED_AGAIN,
    Decisions,
    any_row,
    hubs,
    is_active,
    on_entry,
    revoke_keys,
    suspend_beforehand,
    unrevoked_row,
    update_if_new,
)
from .models import AuditEvent, Device
from .trust import SealedList, current_list
from .trust.change import MAX_KEYS, Change
from .trust.damage import UNREADABLE, each_row, read_activity
from .trust.database import database
from .trust.integrity import IntegrityReport
from .trust.owner import controller_limit
from .trust.revocations import Revocation
from .trust.revoking import read_damaged
from .trust.rollback import Memory
from .trust.sealing import is_revoked, now, row_values, storable
from .trust.verified import Snapshot

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

__all__ = ["DatabaseAllowList"]

logger = logging.getLogger("amesh_django.allow_list")


class DeviceDenied(AllowListError):
    """A person denied the device, so its key is not trusted again without a decision about that."""

    code = "device_denied"
    default_message = "The device was denied. Nothing was changed."


class DatabaseAllowList(Decisions, AllowList):
    """The sealed list in the database (design.md, decision 3).

    ``read``, ``find`` and ``get`` return active devices only, which are those that are accepted now. ``count`` counts controllers as
    the limit does: also those that wait for approval, are suspended, or have expired.

    Args:
        by: who makes the changes, for the audit log: a name, such as that of a user.
        using: database alias. Defaults to the database to which the routers write the list.
        device: a device that is not in place yet, such as during enrolment: its key seals the list. Defaults to this server's own.
        approved: True if a person has approved the devices that are added, so that they do not wait (``AMESH["REQUIRE_APPROVAL"]``).
        attended: False if no person decides whom to trust. A key that a hub has revoked is then refused.
    """

    def __init__(
        self,
        *,
        by: str = "",
        using: str | None = None,
        device: LocalDevice | None = None,
        approved: bool = False,
        attended: bool = True,
    ) -> None:
        self._by = by
        self._approved = approved
        self._attended = attended
        self._using = using or database()
        self._device = device
        self._own = SealedList(self._using, device=device) if device is not None else None

    @property
    def _sealed(self) -> SealedList:
        return self._own or current_list(self._using)

    @property
    def controller_limit(self) -> int:  # type: ignore[override]
        """The maximum number of active controllers."""
        return controller_limit(self._device)

    def read(self) -> list[DeviceEntry]:
        rows = Device.objects.using(self._using).order_by("added_at", "id")
        found = self._sealed.verified(
            lambda: list(rows.all()), lambda known, devices: len(devices) == len(known.by_key)
        )
        return [row.to_entry() for row in found if is_active(row)]

    def find(self, public_key: bytes) -> DeviceEntry | None:
        name = encode_public_key(public_key)
        return self._find({"public_key": name}, lambda known: public_key in known.by_key)

    def get(self, device_id: str) -> DeviceEntry:
        found = self._find(
            {"device_id": device_id},
            lambda known: any(device.device_id == device_id for device in list(known.by_key.values())),
        )
        if found is None or found.device_id != device_id:  # a collation may ignore case
            raise not_found(device_id)
        return found

    def _find(self, conditions: Mapping[str, str], is_known: Callable[[Snapshot], bool]) -> DeviceEntry | None:
        """Return the active device whose row meets *conditions*.

        Args:
            conditions: what the row must be.
            is_known: returns True if the verified list has such a row. Called only if the database has none.
        """
        rows = Device.objects.using(self._using).filter(**conditions)
        found = self._sealed.verified(
            lambda: list(rows.all()), lambda known, devices: bool(devices) or not is_known(known)
        )
        return found[0].to_entry() if found and is_active(found[0]) else None

    def count(self, role: Role) -> int:
        found = self._sealed.snapshot()
        if role == CONTROLLER:
            return found.row.controllers if found.row else 0
        return sum(known.role == role and not known.revoked for known in list(found.by_key.values()))

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        """Trust a device, even one that was revoked.

        A device that is trusted keeps its mapped user, its groups, and its state: pairing a suspended device again does not lift it. One
        that was revoked loses them: to act as a user again is a decision of its own. A key that a device has replaced, and that is still
        valid, gets the same permissions, and becomes a target with it.

        Raises:
            DeviceDenied: a person denied the device; nothing was changed.
            KeyRevokedByHub: a hub has revoked the key, and no person decides; nothing was changed.
        """
        limit = self.controller_limit

        def work(pending: Change) -> None:
            if replacing is not None:
                revoke_keys(pending, replacing, f"replaced by {entry.device_id}", self._by)
            if not self._attended:
                hubs.refuse_revoked(pending, entry.public_key)
            row = self._put(pending, entry)
            if self._attended:
                hubs.note_decision(pending, [row], trusted=True)
            if entry.role == CONTROLLER and pending.controllers > limit:
                raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')

        self._sealed.change(self._by, work)

    def _put(self, pending: Change, entry: DeviceEntry) -> Device:
        row = pending.find(public_key=encode_public_key(entry.public_key))
        if row is not None and row.denied_at is not None:
            raise _denied(row)
        if row is None or decode_public_key(row.public_key) != entry.public_key:
            row = Device(**self._entered(entry, None))
            suspend_beforehand(pending, [] if self._attended else [row])
            pending.insert([row])
        else:
            self._refresh(pending, row, entry)
        return row

    def _refresh(self, pending: Change, row: Device, entry: DeviceEntry) -> None:
        """Trust a device that has a row. A key that it has replaced, and that is still valid, may do no more than the new one."""
        for one in pending.replaced_by(row.device_id):
            less = {"permissions_json": _columns(entry)["permissions_json"]}
            if entry.role != CONTROLLER:
                less["role"] = entry.role
            update_if_new(pending, one, AuditEvent.Kind.TRUST, less)
        pending.update(row, AuditEvent.Kind.TRUST, **self._entered(entry, row))

    def _entered(self, entry: DeviceEntry, row: Device | None) -> dict[str, Any]:
        """Return the columns of a device that is added, or is refreshed if it has a row."""
        columns = _columns(entry)
        if row is not None and row.is_revoked:
            columns.update(TRUSTED_AGAIN)
        if row is None or row.is_revoked or row.role != entry.role:
            columns.update(on_entry(entry.role, approved=self._approved))
        return columns

    def devices(self) -> list[Device]:
        """Return the rows of all devices, trusted and revoked, oldest first, each with its user and its activity.

        Raises:
            AllowListIntegrityFailure: the list does not match its seal.
        """
        rows = Device.objects.using(self._using).select_related("user").order_by("added_at", "id")
        found = self._sealed.verified(
            lambda: list(rows.all()), lambda known, devices: len(devices) == len(known.by_key)
        )
        read_activity(found, self._using)
        return list(found)

    def add_all(self, entries: Sequence[DeviceEntry], *, even_revoked: bool = False) -> list[DeviceEntry]:
        limit = self.controller_limit
        unique = {encode_public_key(entry.public_key): entry for entry in entries}

        def work(pending: Change) -> list[DeviceEntry]:
            skipped = []
            known: dict[str, Device] = {}
            names = list(unique)
            for start in range(0, len(names), MAX_KEYS):
                part = pending.select(public_key__in=names[start : start + MAX_KEYS])
                known.update((row.public_key, row) for row in part)
            keys = [entry.public_key for entry in entries]
            denied = set() if even_revoked else hubs.revoked_keys(pending, keys)
            for name, row in known.items():
                if row.denied_at is not None and even_revoked:
                    raise _denied(row)
                if (row.is_revoked or row.denied_at is not None) and not even_revoked:
                    skipped.append(unique[name])
                else:
                    self._refresh(pending, row, unique[name])
            coming = [entry for name, entry in unique.items() if name not in known]
            skipped += [entry for entry in coming if entry.public_key in denied]
            new = [Device(**self._entered(entry, None)) for entry in coming if entry.public_key not in denied]
            suspend_beforehand(pending, [] if even_revoked else new)
            pending.insert(new)
            if even_revoked:
                hubs.note_decision(pending, [*known.values(), *new], trusted=True)
            if pending.controllers > limit and pending.changed:
                raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')
            return skipped

        return self._sealed.change(self._by, work)

    def revocable(self) -> list[DeviceEntry]:
        """Return the devices that can be revoked. In a list that does not match its seal, their names are those that were sealed."""
        try:
            return [row.to_entry() for row in self.devices() if not row.is_revoked and row.denied_at is None]
        except AllowListIntegrityFailure:
            sealed = [row for row in self._sealed.sealed_devices() if not is_revoked(row_values(row))]
        found = {row.device_id: row.to_entry() for row in sealed}
        rows = Device.objects.using(self._using).filter(Q(revoked_at=None) | Q(revoked_at__gt=now()))
        for _pk, row in each_row(rows.only("device_id")):
            if (
                row is not None and row.device_id not in found
            ):  # added or trusted again outside Django, and perhaps damaged
                found[row.device_id] = _entry(read_damaged(rows, row.device_id))
        return list(found.values())

    def revoke_all(self, device_ids: Sequence[str], *, reason: str = "", by: str = "") -> list[DeviceEntry]:
        """Stop trusting devices. Their rows stay, with when, who and why, until :meth:`purge` removes them.

        The keys that a device has replaced, and those that have replaced it, are revoked with it; the latter are returned, too. This
        works even if the list does not match its seal: then ``trouble`` says what else is wrong.
        """
        by = by or self._by
        self.trouble = None

        def work(pending: Change) -> list[DeviceEntry]:
            done: dict[str, Device] = {}
            newer: list[str] = []
            for device_id in device_ids:
                if device_id not in done:
                    revoked, later = revoke_keys(pending, device_id, reason, by)
                    done |= revoked
                    newer += later
            return [done[name].to_entry() for name in dict.fromkeys((*device_ids, *newer))]

        try:
            self._sealed.snapshot()  # also detects an older list that was restored, unlike the change
            return self._sealed.change(by, work)
        except AllowListIntegrityFailure as error:
            trouble = error
        rows, is_good = self._sealed.revoke_anyway(device_ids, reason=reason, by=by)
        self.trouble = None if is_good else trouble
        logger.warning("Revoked in a list that did not match its seal: %s.", ", ".join(device_ids))
        return [_entry(row) for row in rows]

    def update_permissions_of(
        self, device_ids: Sequence[str], update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> list[DeviceEntry]:
        def work(pending: Change) -> list[DeviceEntry]:
            entries = []
            for device_id in device_ids:
                row = unrevoked_row(pending, device_id)
                for one in (row, *pending.replaced_by(device_id)):
                    text = canonical_json(dict(update(one.to_entry().permissions))).decode()
                    pending.update(one, AuditEvent.Kind.GRANT, permissions_json=text)
                entries.append(row.to_entry())
            return entries

        return self._sealed.change(self._by, work)

    def map_user(self, device_id: str, user: AbstractBaseUser | None) -> None:
        """Let a device, and a key that it has replaced and that is still valid, act as a Django user in REST framework views.

        Args:
            device_id: ``am_…``; also of a revoked device, so that its user can be deleted.
            user: the user; None removes the mapping.

        Raises:
            DeviceNotFound: there is no row with that ID.
        """
        key = user.pk if user is not None else None

        def work(pending: Change) -> None:
            for row in (any_row(pending, device_id), *pending.replaced_by(device_id)):
                pending.update(row, AuditEvent.Kind.MAP, user_id=key)

        self._sealed.change(self._by, work)

    def lost_revocations(self) -> list[Revocation]:
        """Return the revocations of this host that a restored, older list lacks, the oldest first, of the newest 1,000."""
        found = {one.device_id: one for one in self._sealed.revocations()}
        rows = Device.objects.using(self._using).filter(device_id__in=found, revoked_at=None)
        return [found[name] for name in sorted(rows.values_list("device_id", flat=True), key=[*found].index)]

    def verify(self) -> IntegrityReport:
        """Verify every row, and return what differs from what was sealed.

        Raises:
            AllowListBusy: the list could not be locked.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
        """
        return self._sealed.report()

    def memory(self) -> Memory:
        """Return the high-water mark: the newest revision that this host has seen, and where that is kept.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal, or the TPM, cannot be used.
        """
        return self._sealed.memory()

    def reseal(self, *, by: str = "", digest: str | None = None) -> None:
        """Accept the rows as they are, and seal them. A person decides that, after :meth:`verify`.

        Args:
            by: who decided it. Defaults to *by* of this list.
            digest: of the report that the person has read. None seals whatever the rows are now.

        Raises:
            AllowListError: a row is not a device, or the rows are not those of *digest* any more; nothing was changed.
        """
        self._sealed.reseal(by or self._by, digest)

    def rekey(self) -> bool:
        """Seal the list with the first secret of ``AMESH["SEAL_KEY_FILES"]``, if it matches its seal with any of them.

        Returns:
            False if there is nothing to do.

        Raises:
            AllowListIntegrityFailure: the list is rejected; nothing was changed.
        """
        return self._sealed.rekey(self._by)


def _entry(row: Device) -> DeviceEntry:
    """Return the entry of a row, without the key if the row was damaged outside Django."""
    try:
        return row.to_entry()
    except UNREADABLE:
        role: Role = CONTROLLER if row.role == CONTROLLER else TARGET
        return DeviceEntry(row.device_id, b"", str(row.friendly_name), format_time(now()), "manual", role)


def _denied(row: Device) -> DeviceDenied:
    return DeviceDenied(
        _("%(device)s was denied; nothing was changed.") % {"device": row.device_id},
        hint=(_("If that was a mistake, approve it: run "), Run("approve", row.device_id), "."),
    )


def _columns(entry: DeviceEntry) -> dict[str, Any]:
    return {
        "device_id": entry.device_id,
        "public_key": encode_public_key(entry.public_key),
        "friendly_name": storable(entry.friendly_name),
        "role": entry.role,
        "permissions_json": storable(canonical_json(dict(entry.permissions)).decode()),
        "added_at": _moment(entry.added_at),
        "added_by": entry.added_by if entry.added_by in Device.AddedBy.values else Device.AddedBy.MANUAL,
    }


def _moment(text: str) -> dt.datetime:
    try:
        moment = parse_time(text)
    except InvalidInput:  # files of the reference may hold any text there
        return now()
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    return moment if timezone.is_aware(timezone.now()) else timezone.make_naive(moment)
