"""The verified allow list in memory: one small read per request says whether it still holds (design.md, decision 3)."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.device.newest_lists import RESEAL
from amesh_django.protocol.errors import AllowListIntegrityFailure
from amesh_django.protocol.keys import decode_public_key
from amesh_django.protocol.multiset import MODULUS

from . import rollback
from .models import AllowListSeal, Device
from .sealing import (
    SealRow,
    hash_row,
    is_active_controller,
    is_well_formed,
    iterate_rows,
    read_seal,
    seal_is_genuine,
    total_of,
)
from .server import SealKeys, seal_keys

logger = logging.getLogger("amesh_django.allow_list")

#: A list can go back to the very revision that an idle process knows: that often, in seconds, it asks what others have seen.
_LOOK_SECONDS = 10.0
#: How long a database without a list is not looked at again.
_EMPTY_SECONDS = 1.0

#: How often a list is read again when it changes while it is being read, before writers are locked out.
_ATTEMPTS = 5


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


class _Process:
    """What this process knows of the list in one database."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.snapshot: Snapshot | None = None
        #: What was found wrong with a seal, and until when it is not looked at again.
        self.broken: tuple[SealRow | None, float, AllowListIntegrityFailure] | None = None
        #: When to see again whether other processes have seen a newer list; what they note it in, as it was then.
        self.look_at = 0.0
        self.file: object = None
        self.is_noted = False
        #: Until when a database without a list is taken for a new one.
        self.empty_until = 0.0


_processes: dict[str, _Process] = {}


def reset() -> None:
    """Forget what was verified; the next request verifies all rows again."""
    _processes.clear()
    for connection in connections.all(initialized_only=True):
        connection.__dict__.pop("_amesh_transient", None)
        connection.__dict__.pop("_amesh_dirty", None)


def _after_fork() -> None:
    """A child keeps what its parent verified (and shares the memory), but not a lock that another thread held."""
    for process in _processes.values():
        if process.lock.locked():
            process.snapshot = None
        process.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def database() -> str:
    """The database that the list is written to; it is read from there too, never from a replica."""
    return router.db_for_write(AllowListSeal)


def mark_dirty(connection: BaseDatabaseWrapper) -> None:
    """Note that the open transaction has changed the list: until it has ended, this process must not believe what it reads."""
    if connection.in_atomic_block:
        connection.__dict__["_amesh_dirty"] = connection.atomic_blocks[0]
        transaction.on_commit(lambda: connection.__dict__.pop("_amesh_dirty", None), using=connection.alias)


def _reads_uncommitted(connection: BaseDatabaseWrapper) -> bool:
    """True if this connection may see changes that can still be rolled back: its own, or a test case's."""
    if not connection.in_atomic_block:
        return False
    outermost = connection.atomic_blocks[0]
    return getattr(outermost, "_from_testcase", False) or connection.__dict__.get("_amesh_dirty") is outermost


def current(using: str | None = None) -> Snapshot:
    """The list as it is now, verified. Costs one read of the seal row while nothing changes.

    Args:
        using: database alias; None asks the routers.

    Raises:
        AllowListIntegrityFailure: the rows do not match the seal (``seal_mismatch``, ``seal_missing``, ``rows_mismatch``), the list
            was put back (``rolled_back``, ``revision_lost``), or it can't be read (``allow_list_unavailable``).
        KeyStoreError, DirectoryError: the keys of the seal can't be had.
    """
    using = using or database()
    connection = connections[using]
    process = _processes.get(using) or _processes.setdefault(using, _Process())
    before = process.snapshot
    try:
        row = read_seal(using)
        if before is not None and row is not None and row == before.row and not _reads_uncommitted(connection):
            if time.monotonic() > process.look_at:
                _look_again(using, process, row)
            return before
        if row is not None and not is_well_formed(row):
            raise _broken("seal_mismatch")
        if _reads_uncommitted(connection):
            return _transient(using, connection, row)
        return _advance(using, process, connection, before, row)
    except (DatabaseError, InterfaceError) as error:
        logger.error("The allow list can't be read from the database: %s", type(error).__name__)
        raise AllowListIntegrityFailure(
            "The allow list can't be read: the database is down, or not migrated (manage.py migrate).",
            reason="allow_list_unavailable",
        ) from error


def _is_older(row: SealRow | None, kept: Snapshot) -> bool:
    """True if *row* seals an older list than *kept*, or another one of the same revision: a list put back and changed."""
    if row is None or kept.row is None or row.revision != kept.revision:
        return kept.revision > (row.revision if row else 0)
    return row.hmac != kept.row.hmac


def _transient(using: str, connection: BaseDatabaseWrapper, row: SealRow | None) -> Snapshot:
    """The list as an open transaction sees it; kept with the connection, never with the process."""
    kept: Snapshot | None = connection.__dict__.get("_amesh_transient")
    if kept is None or kept.row != row or row is None:
        keys = seal_keys()
        try:
            try:
                kept = _rebuild(using, keys, row)
            except AllowListIntegrityFailure:  # others may have changed the list between the two reads
                again = read_seal(using)
                if again == row:
                    raise
                kept = _rebuild(using, keys, again)
        except AllowListIntegrityFailure as error:
            raise _broken(error.reason) from None
        connection.__dict__["_amesh_transient"] = kept
    return kept


def _advance(
    using: str, process: _Process, connection: BaseDatabaseWrapper, before: Snapshot | None, row: SealRow | None
) -> Snapshot:
    """Bring the snapshot of the process up to the seal that was read."""
    broken = process.broken
    if broken is not None and row == broken[0] and time.monotonic() < broken[1]:
        raise AllowListIntegrityFailure(*broken[2].args, reason=broken[2].reason)
    if before is not None and _is_older(row, before):
        # Read after it was adopted, and older: a transaction that began earlier may see that, a fresh read may not.
        if connection.in_atomic_block:
            return before
        raise _broken("rolled_back")
    keys = seal_keys()
    with process.lock:
        started = time.monotonic()
        for _ in range(_ATTEMPTS):
            found = _try(using, process, keys, row)
            if found is not None:
                return found
            again = read_seal(using)
            if again == row:
                break
            row = again
        else:
            with transaction.atomic(using=using):
                list(AllowListSeal.objects.using(using).select_for_update().filter(pk=1))
                row = read_seal(using)
                found = _try(using, process, keys, row)
            if found is not None:
                return found
        if row is not None:
            _pause(process, row, started, _failure("rows_mismatch"))
        raise _broken("rows_mismatch" if row is not None else "seal_missing")


def _pause(process: _Process, row: SealRow | None, started: float, error: AllowListIntegrityFailure) -> None:
    """What was found wrong with this seal is not looked for again at each request."""
    pause = max(1.0, 10 * (time.monotonic() - started))
    process.broken = (row, time.monotonic() + pause, error)


def _check_age(using: str, process: _Process, keys: SealKeys, row: SealRow | None) -> None:
    """Refuse a list that is older than one that this host has seen, before anything is taken from it."""
    started = time.monotonic()
    if row is None and started < process.empty_until:
        return
    if row is not None and not seal_is_genuine(keys, row):
        return  # found out below, and said otherwise
    file = rollback.state_of_file(using, keys)
    try:
        process.is_noted = rollback.check(using, keys, row)
    except AllowListIntegrityFailure as error:
        _pause(process, row, started, error)
        logger.critical("%s", error)
        raise
    process.file = file
    if row is None:
        process.empty_until = time.monotonic() + _EMPTY_SECONDS


def _note(using: str, process: _Process, keys: SealKeys, row: SealRow) -> None:
    """Note that this verified list is the newest, unless another process did."""
    if not process.is_noted:
        process.is_noted = rollback.remember(using, keys, row)
        process.file = rollback.state_of_file(using, keys)
    process.look_at = time.monotonic() + _LOOK_SECONDS


def _look_again(using: str, process: _Process, row: SealRow) -> None:
    """The list is the one that this process knows; is it still the newest, by what the other processes have seen?"""
    keys = seal_keys()
    with process.lock:
        if time.monotonic() < process.look_at:
            return
        try:
            if rollback.state_of_file(using, keys) != process.file:
                _check_age(using, process, keys, row)
            _note(using, process, keys, row)
        except BaseException:
            process.snapshot = None
            raise


def _try(using: str, process: _Process, keys: SealKeys, row: SealRow | None) -> Snapshot | None:
    """The snapshot for *row*, adopted; None if the rows do not match it (they may have changed since it was read)."""
    kept = process.snapshot
    if kept is not None and row is not None:
        if kept.row == row or kept.revision > row.revision:
            return kept
        if _is_older(row, kept):
            raise _broken("rolled_back")
    _check_age(using, process, keys, row)
    if kept is not None and row is not None:
        if row.touched == 0 and seal_is_genuine(keys, row) and _catch_up(using, keys, kept, row):
            _note(using, process, keys, row)
            return kept
    try:
        found = _rebuild(using, keys, row)
    except AllowListIntegrityFailure as error:
        if error.reason not in (
            "rows_mismatch",
            "seal_missing",
        ):  # the first device may have come after the seal was read
            raise _broken(error.reason) from None
        return None
    process.broken = None
    if row is not None:
        _note(using, process, keys, row)
        process.snapshot = found
    return found


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


def _catch_up(using: str, keys: SealKeys, kept: Snapshot, row: SealRow) -> bool:
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


def _rebuild(using: str, keys: SealKeys, row: SealRow | None) -> Snapshot:
    """Read and hash every row.

    Raises:
        AllowListIntegrityFailure: they do not match *row*.
    """
    if row is None:
        if Device.objects.using(using).exists():
            raise _failure("seal_missing")
        return Snapshot(None)
    if not seal_is_genuine(keys, row):
        raise _failure("seal_mismatch")
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
        raise _failure("rows_mismatch") from None
    snapshot.total %= MODULUS
    found = (snapshot.total, len(snapshot.by_key), controllers)
    if found != (total_of(keys, row), row.count, row.controllers):
        raise _failure("rows_mismatch")
    return snapshot


_SENTENCES = {
    "seal_missing": "There are devices in the database, but no seal over them",
    "seal_mismatch": "The seal in the database was not made with this server's key",
    "rows_mismatch": "The devices in the database do not match their seal: a row was changed past the app",
    "rolled_back": "The list in the database is older than one that this process has verified",
}
_MEND = "Run manage.py amesh_integrity to see what differs."
_MENDS = {"rolled_back": f"Was a backup put back? {RESEAL}"}


def _failure(reason: str) -> AllowListIntegrityFailure:
    return AllowListIntegrityFailure(
        f"{_SENTENCES[reason]}. Nobody is let in. {_MENDS.get(reason, _MEND)}", reason=reason
    )


def _broken(reason: str) -> AllowListIntegrityFailure:
    error = _failure(reason)
    logger.critical("%s", error)
    return error


def verify_rows(using: str, row: SealRow | None) -> None:
    """Verify all rows against *row*, without keeping anything.

    Raises:
        AllowListIntegrityFailure: they do not match.
    """
    try:
        _rebuild(using, seal_keys(), row)
    except AllowListIntegrityFailure as error:
        raise _broken(error.reason) from None


def verify_age(using: str, row: SealRow | None) -> None:
    """Verify that a genuine seal is not older than one that this host has seen.

    Raises:
        AllowListIntegrityFailure: it is, or that is not known any more.
        KeyStoreError, DirectoryError: the keys of the seal, or the TPM that knows, can't be had.
    """
    try:
        rollback.check(using, seal_keys(), row)
    except AllowListIntegrityFailure as error:
        logger.critical("%s", error)
        raise
