"""A list from the database that was verified row by row: how a process builds it in memory, and how it applies changes."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device, DeviceGroup
from amesh_django.models.names import names_in
from amesh_django.states import REVOKED, UNRESTRICTED, Standing, State, revoked_from, standing, state_of
from authmesh.protocol.errors import AllowListIntegrityFailure, Hint, Run
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.multiset import MODULUS

from .damage import UNREADABLE
from .groups import Groups
from .marks import is_older, is_other, other_list, reseal_hint
from .sealing import COLUMNS, SealedRows, SealRow, is_counted_controller, row_values

_GROUPS = COLUMNS.index("groups_json")
_REVOKED, _PENDING = COLUMNS.index("revoked_at"), COLUMNS.index("pending_since")
_ROTATION = COLUMNS.index("rotation_requested_at")
_STANDING = {
    name: COLUMNS.index(name)
    for name in (
        "revoked_at",
        "revoked_by",
        "revoke_reason",
        "denied_at",
        "suspended_at",
        "suspended_until",
        "expires_at",
        "pending_since",
    )
}


class KnownDevice(NamedTuple):
    """A device in a snapshot.

    Attributes:
        standing: the columns that its state follows from.
        groups_json: names of its groups as a JSON list; empty for none.
        scopes: its own scopes and those of its groups.
        counted_controller: True if it counts towards ``maxControllers``.
        replaced_by: device ID of the key that has replaced this one, as long as this one is valid.
        rotation_requested: True if a person asked the device to replace its key, and it has not.
    """

    pk: int
    device_id: str
    friendly_name: str
    role: str
    permissions_json: str
    standing: Standing
    groups_json: str
    scopes: frozenset[str]
    user_id: Any
    counted_controller: bool
    row_hash: int
    replaced_by: str = ""
    rotation_requested: bool = False

    def state(self, now: float) -> State:
        """Return the state of the device. Only ``active`` is accepted.

        Args:
            now: Unix seconds.
        """
        return state_of(self.standing, now)

    @property
    def expires_at(self) -> float | None:
        """Unix seconds from which the device is expired; None if it does not expire."""
        return self.standing.expires_from

    @property
    def revoked(self) -> bool:
        """True if the device is revoked now."""
        return self.state(time.time()) == REVOKED

    @property
    def permissions(self) -> Mapping[str, Any]:
        """Name → value, such as ``{"shell": True}``."""
        return _permissions(self.permissions_json)


@functools.lru_cache(maxsize=1024)
def _permissions(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    return MappingProxyType(found if isinstance(found, dict) else {})


class Newer(NamedTuple):
    """The changes that lead from a snapshot to a newer seal.

    Attributes:
        devices: the newer rows, each with its public key.
        groups: all groups; those of the snapshot if they are the same.
    """

    devices: Sequence[tuple[bytes, KnownDevice]]
    groups: Groups


@dataclass(slots=True)
class Snapshot:
    """A list that matched its seal.

    Attributes:
        row: the seal row that it was verified against; None for a list without a seal and without devices.
        total: sum of all row hashes, without a mask.
        by_key: public key (33 bytes) → device, including revoked ones.
        key_of: primary key → public key.
        groups: the groups.
        replaced: primary keys of the devices whose key was replaced and was still valid when the row was read.
    """

    row: SealRow | None
    total: int = 0
    by_key: dict[bytes, KnownDevice] = field(default_factory=dict)
    key_of: dict[int, bytes] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    replaced: set[int] = field(default_factory=set)

    @property
    def revision(self) -> int:
        """Revision of the list; 0 before the first change."""
        return self.row.revision if self.row else 0

    @classmethod
    def build(cls, sealed: SealedRows, row: SealRow | None) -> Snapshot:
        """Read and hash every row.

        Raises:
            AllowListIntegrityFailure: the rows do not match *row*.
        """
        if row is None:
            if Device.objects.using(sealed.using).exists() or DeviceGroup.objects.using(sealed.using).exists():
                raise failure("seal_missing")
            return cls(None)
        if not sealed.is_genuine(row):
            raise failure("seal_mismatch")
        sealed = sealed.under(row)
        snapshot = cls(row)
        controllers = 0
        try:
            snapshot.groups = read_groups(sealed, row)
            with closing(sealed.rows()) as rows:
                for values in rows:
                    public_key, known = known_device(sealed, values, snapshot.groups)
                    snapshot.by_key[public_key] = known
                    snapshot.key_of[known.pk] = public_key
                    if known.replaced_by:
                        snapshot.replaced.add(known.pk)
                    snapshot.total += known.row_hash
                    controllers += known.counted_controller
        except UNREADABLE:
            raise failure("rows_mismatch") from None
        snapshot.total %= MODULUS
        found = (snapshot.total, len(snapshot.by_key), controllers)
        if found != (sealed.sealed_total(row), row.count, row.controllers):
            raise failure("rows_mismatch")
        return snapshot

    def known(self, pk: int) -> KnownDevice | None:
        """Return the device with this primary key, or None."""
        return self.by_key.get(self.key_of.get(pk, b""))

    def matches(self, sealed: SealedRows, device: Device) -> bool:
        """Return True if a row that was just read is the one that was verified."""
        known = self.known(device.pk)
        return known is not None and known.row_hash == hash_of(sealed.under(self.row), device)

    def newer(self, sealed: SealedRows, row: SealRow) -> Newer | None:
        """Return the groups, and the rows that are newer than this snapshot.

        Args:
            row: a genuine, newer seal row.

        Returns:
            None if the rows do not lead to *row*.
        """
        sealed = sealed.under(row)
        total, count, controllers = self.total, len(self.by_key), self.row.controllers if self.row else 0
        changes = []
        try:
            groups = self.groups if row.groups == self.groups.digest else read_groups(sealed, row)
            with closing(sealed.rows(revision__gt=self.revision)) as rows:
                for values in rows:
                    public_key, known = known_device(sealed, values, groups)
                    old = self.known(known.pk)
                    if old is None:
                        count += 1
                    else:
                        total -= old.row_hash
                        controllers -= old.counted_controller
                    total += known.row_hash
                    controllers += known.counted_controller
                    changes.append((public_key, known))
        except (AllowListIntegrityFailure, *UNREADABLE):
            return None
        if (total % MODULUS, count, controllers) != (sealed.sealed_total(row), row.count, row.controllers):
            return None
        return Newer(changes, groups)

    def catch_up(self, sealed: SealedRows, row: SealRow) -> bool:
        """Apply the rows that are newer than this snapshot.

        Args:
            row: a genuine, newer seal row.

        Returns:
            False if the rows do not lead to *row*. The snapshot is then unchanged.
        """
        newer = self.newer(sealed, row)
        if newer is None:
            return False
        # One step for each device: a reader in another thread sees the old or the new one.
        if newer.groups is not self.groups:
            self.groups = newer.groups
            for public_key, known in self.by_key.items():
                if known.groups_json:
                    scopes = newer.groups.scopes_of(known.permissions_json, known.groups_json)
                    self.by_key[public_key] = known._replace(scopes=scopes)
        for public_key, known in newer.devices:
            old_key = self.key_of.get(known.pk)
            self.by_key[public_key] = known
            self.key_of[known.pk] = public_key
            if known.replaced_by:
                self.replaced.add(known.pk)
            else:
                self.replaced.discard(known.pk)
            if old_key is not None and old_key != public_key:
                del self.by_key[old_key]
        self.total = sealed.under(row).sealed_total(row)
        self.row = row
        return True


class Basis:
    """The verified rows that an open change begins with: a snapshot, and what is newer than it.

    Args:
        snapshot: a list that matched its seal.
        newer: as :meth:`Snapshot.newer` returns it.
    """

    def __init__(self, snapshot: Snapshot, newer: Newer | None = None) -> None:
        devices = newer.devices if newer is not None else ()
        self._snapshot = snapshot
        self._newer = {known.pk: known for _key, known in devices}
        self._newer_keys = {public_key for public_key, _known in devices}

    def row_hash(self, pk: int) -> int | None:
        """Return the hash of the row with this primary key, or None if there is none."""
        known = self._newer.get(pk) or self._snapshot.known(pk)
        return known.row_hash if known is not None else None

    def replaced_by(self, device_id: str) -> list[int]:
        """Return the primary keys of the devices whose key a device has replaced and that are still valid."""
        found = (self._newer.get(pk) or self._snapshot.known(pk) for pk in {*self._snapshot.replaced, *self._newer})
        return [known.pk for known in found if known and known.replaced_by == device_id and not known.revoked]

    def members(self, group: str) -> list[int]:
        """Return the primary keys of the devices in a group, also of revoked ones."""
        known = {device.pk: device for device in (*self._snapshot.by_key.values(), *self._newer.values())}
        return sorted(pk for pk, device in known.items() if group in names_in(device.groups_json))

    def has_key(self, public_key: bytes) -> bool:
        """Return True if a row has this public key."""
        return public_key in self._newer_keys or public_key in self._snapshot.by_key

    def has_id(self, device_id: str) -> bool:
        """Return True if a row has this device ID. Looks at all of them."""
        return device_id in self.ids

    @functools.cached_property
    def ids(self) -> set[str]:
        """The device IDs of all rows."""
        return {known.device_id for known in (*self._newer.values(), *self._snapshot.by_key.values())}


class Broken(NamedTuple):
    """A seal that was rejected, the monotonic time until which it is not examined again, and the error."""

    row: SealRow | None
    until: float
    error: AllowListIntegrityFailure


def hash_of(sealed: SealedRows, device: Device) -> int | None:
    """Return the hash of a row that was just read, or None if it holds a value that amesh cannot have written."""
    try:
        return sealed.hash_row(row_values(device))
    except UNREADABLE:
        return None


def read_groups(sealed: SealedRows, row: SealRow) -> Groups:
    """Return all groups.

    Raises:
        AllowListIntegrityFailure: they are not those that *row* binds.
        ValueError: the scopes of a group are not JSON.
    """
    groups = Groups(sealed.groups())
    if groups.digest != row.groups:
        raise failure("rows_mismatch")
    return groups


def known_device(sealed: SealedRows, values: Sequence[Any], groups: Groups) -> tuple[bytes, KnownDevice]:
    """Return public key and device of a row. A row that amesh cannot have written raises an error of ``UNREADABLE``.

    Args:
        sealed: the rows, with the keys of the seal.
        values: the row, in the order of ``COLUMNS``.
        groups: the groups of the list.
    """
    public_key = decode_public_key(values[2])
    since = revoked_from(*values[9:12])
    permissions_json, groups_json = sys.intern(str(values[5])), sys.intern(str(values[_GROUPS]))
    known = KnownDevice(
        pk=values[0],
        device_id=values[1],
        friendly_name=values[3],
        role=sys.intern(str(values[4])),  # all devices share a few texts
        permissions_json=permissions_json,
        standing=_standing(values),
        groups_json=groups_json,
        scopes=groups.scopes_of(permissions_json, groups_json),
        user_id=values[8],
        counted_controller=is_counted_controller(values),
        row_hash=sealed.hash_row(values),
        replaced_by=str(values[10]) if since is not None and since > time.time() else "",
        rotation_requested=since is None and values[_ROTATION] is not None,
    )
    return public_key, known


def _standing(values: Sequence[Any]) -> Standing:
    if values[_REVOKED] is None and not any(values[_PENDING:]):  # nearly every row
        return UNRESTRICTED
    return standing(**{name: values[index] for name, index in _STANDING.items()})


_MESSAGES = {
    "seal_missing": gettext_lazy("The database contains devices, but no seal over them."),
    "seal_mismatch": gettext_lazy("The seal in the database was not made with this server's key."),
    "rows_mismatch": gettext_lazy(
        "The devices in the database do not match their seal: a row was changed outside Django."
    ),
    "rolled_back": gettext_lazy("The list in the database is older than one that this process has verified."),
}


def other_secret() -> str:
    """Return what to do first about a list that was sealed with another secret."""
    return _(
        "If several hosts use this database, set AMESH['SEAL_KEY_FILE'] to the same file on each of them. Do not reseal the list in that "
        "case: the other hosts would reject it."
    )


def failure(reason: str) -> AllowListIntegrityFailure:
    """Return the error for a reason: ``seal_missing``, ``seal_mismatch``, ``rows_mismatch`` or ``rolled_back``."""
    hint: Hint = (_("All requests are rejected. To see what differs, run "), Run("integrity"), ".")
    if reason == "rolled_back":
        hint = reseal_hint()
    elif reason == "seal_mismatch":
        rejected, look = _("All requests are rejected."), _("If this is the only host, run")
        hint = (f"{rejected} {other_secret()} {look} ", Run("integrity"), ".")
    return AllowListIntegrityFailure(str(_MESSAGES[reason]), hint=hint, reason=reason)


def objection(found: SealRow | None, known: SealRow) -> AllowListIntegrityFailure | None:
    """Return the error for a list that is older than one that is known, or another one; None for a later state of it."""
    mark = found.mark if found is not None else None
    if is_other(mark, known.mark):
        return other_list()
    return failure("rolled_back") if is_older(mark, known.mark) else None
