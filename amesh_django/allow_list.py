"""The allow list in the database: the same interface as the sealed file, with users, revoked devices and purging besides."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from amesh_django.trust.database import database
from authmesh.device import AllowList
from authmesh.device.allow_list import limit_reached, not_found
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, Role
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import AllowListError, InvalidInput
from authmesh.protocol.keys import decode_public_key, encode_public_key
from authmesh.protocol.seal import canonical_json

from .models import AllowListChange, Device
from .trust import integrity, rollback, snapshot
from .trust.change import Change, change, now, storable
from .trust.owner import controller_limit
from .trust.verified import Snapshot

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser


def _moment(text: str) -> dt.datetime:
    try:
        moment = parse_time(text)
    except InvalidInput:  # files of the reference may hold any text there
        return now()
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    return moment if timezone.is_aware(timezone.now()) else timezone.make_naive(moment)


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


_FRESH: dict[str, Any] = {"revoked_at": None, "revoked_by": "", "revoke_reason": ""}


class DatabaseAllowList(AllowList):
    """The sealed list in the database (design.md, decision 3).

    Args:
        by: who makes the changes, for the journal: a user name, ``command``, …
        using: database alias; None asks the routers for the one that is written to.
    """

    def __init__(self, *, by: str = "", using: str | None = None) -> None:
        self._by = by
        self._using = using or database()

    @property
    def controller_limit(self) -> int:  # type: ignore[override]
        """How many active controllers there may be."""
        return controller_limit()

    def read(self) -> list[DeviceEntry]:
        """See :meth:`AllowList.read`."""
        self._verify()
        rows = Device.objects.using(self._using).filter(revoked_at=None).order_by("added_at", "id")
        return [row.to_entry() for row in rows.iterator(chunk_size=5000)]

    def _verify(self) -> Snapshot:
        return snapshot.current(self._using)

    def _row(self, device_id: str) -> Device | None:
        row = Device.objects.using(self._using).filter(device_id=device_id).first()
        return row if row is not None and row.device_id == device_id else None

    def find(self, public_key: bytes) -> DeviceEntry | None:
        """See :meth:`AllowList.find`."""
        known = self._verify().by_key.get(public_key)
        if known is None or known.revoked:
            return None
        row = Device.objects.using(self._using).filter(pk=known.pk, revoked_at=None).first()
        return row.to_entry() if row is not None else None

    def get(self, device_id: str) -> DeviceEntry:
        """See :meth:`AllowList.get`."""
        self._verify()
        row = self._row(device_id)
        if row is None or row.is_revoked:
            raise not_found(device_id)
        return row.to_entry()

    def count(self, role: Role) -> int:
        """See :meth:`AllowList.count`."""
        found = self._verify()
        if role == CONTROLLER:
            return found.row.controllers if found.row else 0
        return sum(known.role == role and not known.revoked for known in list(found.by_key.values()))

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        """See :meth:`AllowList.add`. A revoked device that is added again is trusted again; its mapped user stays."""
        limit = self.controller_limit

        def work(pending: Change) -> None:
            if replacing is not None:
                _revoke(pending, replacing, f"replaced by {entry.device_id}", self._by)
            _put(pending, entry)
            if entry.role == CONTROLLER and pending.controllers > limit:
                raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')

        change(self._using, self._by, work)

    def add_all(self, entries: Sequence[DeviceEntry]) -> list[DeviceEntry]:
        """See :meth:`AllowList.add_all`."""
        limit = self.controller_limit
        unique = {encode_public_key(entry.public_key): entry for entry in entries}

        def work(pending: Change) -> list[DeviceEntry]:
            skipped = []
            known: dict[str, Device] = {}
            names = list(unique)
            for start in range(0, len(names), 500):
                part = pending.rows().filter(public_key__in=names[start : start + 500])
                known.update((row.public_key, row) for row in part)
            for name, row in known.items():
                if row.is_revoked:
                    skipped.append(unique[name])
                else:
                    pending.update(row, **_columns(unique[name]))
            pending.insert(Device(**_columns(entry)) for name, entry in unique.items() if name not in known)
            if pending.controllers > limit and pending.changed:
                raise limit_reached(limit, 'AMESH["MAX_CONTROLLERS"]')
            return skipped

        return change(self._using, self._by, work)

    def revoke(self, device_id: str, *, reason: str = "", by: str = "") -> DeviceEntry:
        """See :meth:`AllowList.revoke`. The row stays, with when, who and why; :meth:`purge` removes it."""
        return change(
            self._using,
            by or self._by,
            lambda pending: _revoke(pending, device_id, reason, by or self._by).to_entry(),
        )

    def update_permissions(
        self, device_id: str, update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> DeviceEntry:
        """See :meth:`AllowList.update_permissions`."""

        def work(pending: Change) -> DeviceEntry:
            row = _active(pending, device_id)
            permissions = canonical_json(dict(update(row.to_entry().permissions))).decode()
            return pending.update(row, permissions_json=permissions).to_entry()

        return change(self._using, self._by, work)

    def map_user(self, device_id: str, user: AbstractBaseUser | None) -> None:
        """Let a device act as a Django user in REST framework views, or (None) no longer.

        Raises:
            DeviceNotFound: there is no row of that id. A revoked device may be mapped, so that its user can be deleted.
        """
        key = user.pk if user is not None else None

        def work(pending: Change) -> None:
            pending.update(_any(pending, device_id), user_id=key)

        change(self._using, self._by, work)

    def purge(self, device_id: str) -> None:
        """Remove the row of a revoked device for good.

        Raises:
            DeviceNotFound: there is no row of that id.
            AllowListError: the device is not revoked.
        """

        def work(pending: Change) -> None:
            row = _any(pending, device_id)
            if not row.is_revoked:
                raise AllowListError(f"{device_id} is still trusted. Revoke it first, then purge it.")
            pending.delete(row)

        change(self._using, self._by, work)

    def verify(self) -> integrity.IntegrityReport:
        """Verify every row, and say what differs from what was sealed."""
        return integrity.report(self._using)

    def memory(self) -> rollback.Memory:
        """What this host remembers of the list: the newest revision that it has seen, and where that is kept.

        Raises:
            KeyStoreError, DirectoryError: the keys of the seal, or the TPM, can't be had.
        """
        return rollback.memory(self._using)

    def reseal(self, *, by: str = "") -> None:
        """Accept the rows as they stand and seal them anew. A person decides that, after :meth:`verify`.

        Raises:
            AllowListError: a row that is no device stands in the way.
        """
        integrity.reseal(self._using, by or self._by)


def _any(pending: Change, device_id: str) -> Device:
    row = pending.rows().filter(device_id=device_id).first()
    if row is None or row.device_id != device_id:  # a collation may ignore case
        raise not_found(device_id)
    return row


def _active(pending: Change, device_id: str) -> Device:
    row = _any(pending, device_id)
    if row.is_revoked:
        raise not_found(device_id)
    return row


def _revoke(pending: Change, device_id: str, reason: str, by: str) -> Device:
    return pending.update(
        _active(pending, device_id),
        AllowListChange.Action.REVOKED,
        revoked_at=now(),
        revoked_by=storable(by)[:150],
        revoke_reason=storable(reason),
    )


def _put(pending: Change, entry: DeviceEntry) -> None:
    public_key = encode_public_key(entry.public_key)
    row = pending.rows().filter(public_key=public_key).first()
    if row is not None and decode_public_key(row.public_key) == entry.public_key:
        pending.update(row, AllowListChange.Action.ADDED, **_columns(entry), **_FRESH)
    else:
        pending.insert([Device(**_columns(entry))])
