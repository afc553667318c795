"""A list out of the database, verified row by row: what a process keeps in memory, and how it follows the changes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from amesh_django.models import Device
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.multiset import MODULUS

from .high_water import RESEAL
from .keys import SealKeys
from .sealing import SealRow, hash_row, is_active_controller, iterate_rows, seal_is_genuine, total_of


class Known(NamedTuple):
    """What a snapshot keeps of a device."""

    pk: int
    device_id: str
    friendly_name: str
    role: str
    permissions_json: str
    revoked: bool
    user_id: Any
    active_controller: bool
    row_hash: int

    @property
    def permissions(self) -> Mapping[str, Any]:
        """Name → value, such as ``{"shell": True}``."""
        return _permissions(self.permissions_json)


@functools.lru_cache(maxsize=1024)
def _permissions(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    return MappingProxyType(found if isinstance(found, dict) else {})


@dataclass(slots=True)
class Snapshot:
    """A list that matched its seal.

    Attributes:
        row: the seal row that it was verified against; None for a list that has no seal and no devices yet.
        total: unmasked sum of all row hashes.
        by_key: public key (33 bytes) → device, revoked ones included.
        key_of: primary key → public key.
    """

    row: SealRow | None
    total: int = 0
    by_key: dict[bytes, Known] = field(default_factory=dict)
    key_of: dict[int, bytes] = field(default_factory=dict)

    @property
    def revision(self) -> int:
        """Of the list; 0 before the first change."""
        return self.row.revision if self.row else 0


def _known(keys: SealKeys, values: Sequence[Any]) -> tuple[bytes, Known]:
    public_key = decode_public_key(values[2])
    known = Known(
        pk=values[0],
        device_id=values[1],
        friendly_name=values[3],
        role=sys.intern(str(values[4])),  # a few texts for all devices
        permissions_json=sys.intern(str(values[5])),
        revoked=values[9] is not None,
        user_id=values[8],
        active_controller=is_active_controller(values),
        row_hash=hash_row(keys, values),
    )
    return public_key, known


def catch_up(using: str, keys: SealKeys, kept: Snapshot, row: SealRow) -> bool:
    """Apply the rows that are newer than *kept*, if they lead to *row*; leaves *kept* as it was if not."""
    total, count, controllers = kept.total, len(kept.by_key), kept.row.controllers if kept.row else 0
    changes = []
    try:
        for values in iterate_rows(using, revision__gt=kept.revision):
            public_key, known = _known(keys, values)
            old = kept.by_key.get(kept.key_of.get(known.pk, b""))
            if old is None:
                count += 1
            else:
                total -= old.row_hash
                controllers -= old.active_controller
            total += known.row_hash
            controllers += known.active_controller
            changes.append((public_key, known))
    except (TypeError, ValueError):  # InvalidInput is one: a row that amesh can't have written
        return False
    total %= MODULUS
    if (total, count, controllers) != (total_of(keys, row), row.count, row.controllers):
        return False
    for (
        public_key,
        known,
    ) in changes:  # one step each, so that readers of other threads see the old device or the new one
        old_key = kept.key_of.get(known.pk)
        kept.by_key[public_key] = known
        kept.key_of[known.pk] = public_key
        if old_key is not None and old_key != public_key:
            del kept.by_key[old_key]
    kept.total = total
    kept.row = row
    return True


def rebuild(using: str, keys: SealKeys, row: SealRow | None) -> Snapshot:
    """Read and hash every row.

    Raises:
        AllowListIntegrityFailure: they do not match *row*.
    """
    if row is None:
        if Device.objects.using(using).exists():
            raise failure("seal_missing")
        return Snapshot(None)
    if not seal_is_genuine(keys, row):
        raise failure("seal_mismatch")
    snapshot = Snapshot(row)
    controllers = 0
    try:
        for values in iterate_rows(using):
            public_key, known = _known(keys, values)
            snapshot.by_key[public_key] = known
            snapshot.key_of[known.pk] = public_key
            snapshot.total += known.row_hash
            controllers += known.active_controller
    except (TypeError, ValueError):  # InvalidInput is one: a row that amesh can't have written
        raise failure("rows_mismatch") from None
    snapshot.total %= MODULUS
    found = (snapshot.total, len(snapshot.by_key), controllers)
    if found != (total_of(keys, row), row.count, row.controllers):
        raise failure("rows_mismatch")
    return snapshot


_SENTENCES = {
    "seal_missing": "There are devices in the database, but no seal over them",
    "seal_mismatch": "The seal in the database was not made with this server's key",
    "rows_mismatch": "The devices in the database do not match their seal: a row was changed past the app",
    "rolled_back": "The list in the database is older than one that this process has verified",
}
_MEND = "Run manage.py amesh_integrity to see what differs."
_MENDS = {"rolled_back": f"Was a backup put back? {RESEAL}"}


def failure(reason: str) -> AllowListIntegrityFailure:
    """The error for *reason*, with its sentence."""
    return AllowListIntegrityFailure(
        f"{_SENTENCES[reason]}. Nobody is let in. {_MENDS.get(reason, _MEND)}", reason=reason
    )
