"""The verified allow list in memory: one small read per request says whether it still holds (design.md, decision 3)."""

from __future__ import annotations

import logging
import os
import threading
import time

from django.db import DatabaseError, InterfaceError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from amesh_django.models import AllowListSeal
from authmesh.protocol.errors import AllowListIntegrityFailure

from . import rollback
from .database import database
from .keys import SealKeys, seal_keys
from .sealing import SealRow, is_well_formed, read_seal, seal_is_genuine
from .verified import Snapshot, catch_up, failure, rebuild

logger = logging.getLogger("amesh_django.allow_list")

#: A list can go back to the very revision that an idle process knows: that often, in seconds, it asks what others have seen.
_LOOK_SECONDS = 10.0
#: How long a database without a list is not looked at again.
_EMPTY_SECONDS = 1.0

#: How often a list is read again when it changes while it is being read, before writers are locked out.
_ATTEMPTS = 5


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


def _after_fork() -> None:
    """A child keeps what its parent verified (and shares the memory), but not a lock that another thread held."""
    for process in _processes.values():
        if process.lock.locked():
            process.snapshot = None
        process.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _was_changed() -> None:
    """Does nothing: where this is to be called on commit, the open transaction has changed the list, and did not undo that."""


def mark_dirty(connection: BaseDatabaseWrapper) -> None:
    """Note that the open transaction has changed the list: until it has ended, this process must not believe what it reads."""
    if connection.in_atomic_block:
        transaction.on_commit(_was_changed, using=connection.alias)


def _reads_uncommitted(connection: BaseDatabaseWrapper) -> bool:
    """True if this connection may see changes that can still be rolled back: its own, or a test case's."""
    if not connection.in_atomic_block:
        return False
    is_of_test = getattr(connection.atomic_blocks[0], "_from_testcase", False)
    return is_of_test or any(hook[1] is _was_changed for hook in connection.run_on_commit)


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
    known = before.row if before is not None else None  # another thread may bring it up while this one reads
    try:
        row = read_seal(using)
        if before is not None and row is not None and row == before.row and not _reads_uncommitted(connection):
            if time.monotonic() <= process.look_at or _look_again(using, process, row):
                return before
            row = read_seal(using)
        if row is not None and not is_well_formed(row):
            raise _broken("seal_mismatch")
        if _reads_uncommitted(connection):
            return _transient(using, connection, row)
        return _advance(using, process, connection, before, known, row)
    except (DatabaseError, InterfaceError) as error:
        logger.error("The allow list can't be read from the database: %s", type(error).__name__)
        raise AllowListIntegrityFailure(
            "The allow list can't be read: the database is down, or not migrated (manage.py migrate).",
            reason="allow_list_unavailable",
        ) from error


def _is_older(row: SealRow | None, known: SealRow) -> bool:
    """True if *row* seals an older list than *known*, or another one of the same revision: a list put back and changed."""
    if row is None or row.revision != known.revision:
        return known.revision > (row.revision if row else 0)
    return row.hmac != known.hmac


def _transient(using: str, connection: BaseDatabaseWrapper, row: SealRow | None) -> Snapshot:
    """The list as an open transaction sees it; kept with the connection, never with the process."""
    kept: Snapshot | None = connection.__dict__.get("_amesh_transient")
    if kept is None or kept.row != row or row is None:
        keys = seal_keys()
        try:
            try:
                kept = rebuild(using, keys, row)
            except AllowListIntegrityFailure:  # others may have changed the list between the two reads
                again = read_seal(using)
                if again == row:
                    raise
                kept = rebuild(using, keys, again)
        except AllowListIntegrityFailure as error:
            raise _broken(error.reason) from None
        connection.__dict__["_amesh_transient"] = kept
    return kept


def _advance(
    using: str,
    process: _Process,
    connection: BaseDatabaseWrapper,
    before: Snapshot | None,
    known: SealRow | None,
    row: SealRow | None,
) -> Snapshot:
    """Bring the snapshot of the process up to the seal that was read.

    Args:
        before: the snapshot, as it is now.
        known: its seal when that one was not read yet.
        row: the seal that was read.
    """
    broken = process.broken
    if broken is not None and row == broken[0] and time.monotonic() < broken[1]:
        raise AllowListIntegrityFailure(*broken[2].args, reason=broken[2].reason)
    if before is not None and known is not None and _is_older(row, known):
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
            _pause(process, row, started, failure("rows_mismatch"))
        raise _broken("rows_mismatch" if row is not None else "seal_missing")


def _pause(process: _Process, row: SealRow | None, started: float, error: AllowListIntegrityFailure) -> None:
    """What was found wrong with this seal is not looked for again at each request."""
    pause = max(1.0, 10 * (time.monotonic() - started))
    process.broken = (row, time.monotonic() + pause, error)


def _check_age(using: str, process: _Process, keys: SealKeys, row: SealRow | None) -> SealRow | None:
    """Refuse a list that is older than one that this host has seen, before anything is taken from it.

    Returns:
        *row*, or a newer one if others went on since it was read.
    """
    started = time.monotonic()
    if row is None and started < process.empty_until:
        return row
    if row is not None and not seal_is_genuine(keys, row):
        return row  # found out below, and said otherwise
    file = rollback.state_of_file(using, keys)
    try:
        newest, process.is_noted = rollback.check(using, keys, row)
    except AllowListIntegrityFailure as error:
        _pause(process, row, started, error)
        logger.critical("%s", error)
        raise
    process.file = file
    if newest is None:
        process.empty_until = time.monotonic() + _EMPTY_SECONDS
    return newest


def _note(using: str, process: _Process, keys: SealKeys, row: SealRow) -> None:
    """Note that this verified list is the newest, unless another process did."""
    if not process.is_noted:
        process.is_noted = rollback.remember(using, keys, row)
        process.file = rollback.state_of_file(using, keys)
    process.look_at = time.monotonic() + _LOOK_SECONDS


def _look_again(using: str, process: _Process, row: SealRow) -> bool:
    """The list is the one that this process knows; is it still the newest, by what the other processes have seen?

    Returns:
        False if others went on since it was read.
    """
    keys = seal_keys()
    with process.lock:
        if time.monotonic() < process.look_at:
            return True
        try:
            if rollback.state_of_file(using, keys) != process.file and _check_age(using, process, keys, row) != row:
                return False
            _note(using, process, keys, row)
        except BaseException:
            process.snapshot = None
            raise
    return True


def _try(using: str, process: _Process, keys: SealKeys, row: SealRow | None) -> Snapshot | None:
    """The snapshot for *row*, adopted; None if the rows do not match it (they may have changed since it was read)."""
    kept = process.snapshot
    if kept is not None and row is not None:
        if kept.row == row or kept.revision > row.revision:
            return kept
        if kept.row is not None and _is_older(row, kept.row):
            raise _broken("rolled_back")
    newest = _check_age(using, process, keys, row)
    # A transaction that began earlier goes on seeing what was before: true there, and not kept.
    is_past = newest != row and connections[using].in_atomic_block and read_seal(using) == row
    if not is_past:
        row = newest
    if kept is not None and row is not None and not is_past:
        if row.touched == 0 and seal_is_genuine(keys, row) and catch_up(using, keys, kept, row):
            _note(using, process, keys, row)
            return kept
    try:
        found = rebuild(using, keys, row)
    except AllowListIntegrityFailure as error:
        if error.reason not in (
            "rows_mismatch",
            "seal_missing",
        ):  # the first device may have come after the seal was read
            raise _broken(error.reason) from None
        return None
    process.broken = None
    if row is not None and not is_past:
        _note(using, process, keys, row)
        process.snapshot = found
    return found


def _broken(reason: str) -> AllowListIntegrityFailure:
    error = failure(reason)
    logger.critical("%s", error)
    return error


def verify_rows(using: str, row: SealRow | None) -> None:
    """Verify all rows against *row*, without keeping anything.

    Raises:
        AllowListIntegrityFailure: they do not match.
    """
    try:
        rebuild(using, seal_keys(), row)
    except AllowListIntegrityFailure as error:
        raise _broken(error.reason) from None


def verify_age(using: str, row: SealRow | None) -> SealRow | None:
    """Verify that a genuine seal is not older than one that this host has seen; it, or a newer one if others went on since.

    Raises:
        AllowListIntegrityFailure: it is, or that is not known any more.
        KeyStoreError, DirectoryError: the keys of the seal, or the TPM that knows, can't be had.
    """
    try:
        return rollback.check(using, seal_keys(), row)[0]
    except AllowListIntegrityFailure as error:
        logger.critical("%s", error)
        raise
