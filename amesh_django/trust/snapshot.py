"""The verified list in the memory of a process, and the one small read that tells whether it still holds (design.md, decision 3).

The states that the methods below move through, and the locks that they take, are described in :mod:`amesh_django.trust`.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence

from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, F, When
from django.utils.translation import gettext as _

from amesh_django.models import AllowListSeal, Device
from amesh_django.signals import seal_broken
from amesh_django.spelling import manage_py
from authmesh.device import LocalDevice
from authmesh.protocol.errors import AllowListIntegrityFailure, AllowListUnavailable

from .damage import UNREADABLE, reading
from .database import close_stale, read_for_itself, reads_for_itself, without_writers
from .rollback import GuardedRows
from .sealing import SealRow
from .triggers import MAX_TOUCHED
from .verified import Basis, Broken, Snapshot, failure, objection

logger = logging.getLogger("amesh_django.allow_list")

#: Seconds between two looks at what other processes have seen: a list may be restored to the very revision that an idle process knows.
_LOOK_SECONDS = 10.0
#: Seconds after which a mark that could not be stored is tried again.
_NOTE_SECONDS = 1.0
#: Seconds for which a database without a list is not compared with its high-water mark again.
_EMPTY_SECONDS = 1.0
#: A list that did not match its seal is verified again after this many times the duration of the check, at least after a second.
_PAUSE_FACTOR, _MIN_PAUSE_SECONDS = 10, 1.0
#: How often a list that changes while it is read is read again before writers are locked out.
_MAX_ATTEMPTS = 5


_NEXT_TOUCHED = Case(When(touched__lt=MAX_TOUCHED, then=F("touched") + 1), default=1)


class VerifiedList(GuardedRows):
    """Adds the snapshot: a list that matched its seal, kept in memory and brought up to date."""

    def __init__(self, using: str, *, device: LocalDevice | None = None) -> None:
        super().__init__(using, device=device)
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._broken: Broken | None = None
        #: True if the receivers of ``seal_broken`` were told that the list is rejected.
        self._is_told = False
        #: When to look again at what other processes have seen (monotonic time), and the stamp of their marks at the last look.
        self._look_at = 0.0
        self._stamp: object = None
        #: True if the revision of the snapshot is stored as the high-water mark.
        self._is_noted = False
        #: Until when a database without a list is taken for a new one (monotonic time).
        self._empty_until = 0.0

    def snapshot(self) -> Snapshot:
        """Return the list as it is now, verified. Costs one read of the seal row while nothing changes.

        Raises:
            AllowListIntegrityFailure: the rows do not match the seal (``seal_mismatch``, ``seal_missing``, ``rows_mismatch``), an
                older list or another one was restored (``rolled_back``, ``other_epoch``, ``revision_lost``).
            AllowListUnavailable: the list cannot be read from the database.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
        """
        connection = connections[self.using]
        try:
            try:
                found = self._read(connection)
            except (DatabaseError, InterfaceError):
                if not close_stale(connection):
                    raise
                found = self._read(connection)
        except AllowListIntegrityFailure as error:
            if not self._is_told:
                self._is_told = True
                seal_broken.send_robust(sender=None, error=error)
            raise
        except (DatabaseError, InterfaceError) as error:
            logger.error("The allow list cannot be read from the database: %s", type(error).__name__)
            raise AllowListUnavailable(
                _("The allow list cannot be read: the database is down, or not migrated."),
                hint=_("Check that the database runs, then run: manage.py migrate"),
            ) from error
        self._is_told = False
        return found

    def after_fork(self) -> None:
        """Make the list usable in a forked child, which has only the thread that forked."""
        if self._lock.locked():  # by a thread that may have been half through a change of the snapshot
            self._snapshot = None
        self._lock = threading.Lock()

    # --- rows that are handed out or shown ---

    def verified(
        self,
        read: Callable[[], Sequence[Device]],
        is_complete: Callable[[Snapshot, Sequence[Device]], bool] = lambda found, devices: True,
    ) -> Sequence[Device]:
        """Return the rows that *read* reads, each compared with the snapshot. Costs one hash for each of them.

        Args:
            read: reads rows with all columns; called again if the list was changed meanwhile.
            is_complete: returns False if a row of the snapshot is missing.

        Raises:
            AllowListIntegrityFailure: a row is not the one that was verified. The snapshot is forgotten. Otherwise as for
                :meth:`snapshot`.
            IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
        """
        connection = connections[self.using]

        def attempt(found: Snapshot) -> Sequence[Device] | None:
            try:
                with reading():
                    devices = read()
                    is_good = all(found.matches(self, device) for device in devices) and is_complete(found, devices)
            except UNREADABLE:
                return None
            return devices if is_good else None

        for _attempt in range(_MAX_ATTEMPTS):
            found = self.snapshot()
            row = found.row
            devices = attempt(found)
            if devices is not None:
                return devices
            now = self.read_seal()
            if now != row and connection.in_atomic_block:  # it may see the list before the newest change
                devices = attempt(Snapshot.build(self, now))
                if devices is not None:
                    return devices
            if now == row:
                break
        else:

            def attempt_for_itself() -> Sequence[Device] | None:
                read_for_itself(connection)  # a thread that holds our lock may wait for this one
                return attempt(self.snapshot())

            devices = without_writers(self.using, attempt_for_itself)
            if devices is not None:
                return devices
        self.distrust()
        raise _logged(failure("rows_mismatch"))

    def distrust(self, *, tell: bool = True) -> None:
        """Forget the snapshot, because a row differs from it, and let every other process verify all rows, too.

        A lock is not needed: the next request verifies all rows, whatever a thread does with the old snapshot meanwhile.

        Args:
            tell: False if the other processes will verify all rows anyway.
        """
        self._snapshot = None
        connection = connections[self.using]
        connection.__dict__.pop("_amesh_transient", None)
        if not tell or connection.in_atomic_block:  # it may be rolled back
            return
        try:
            AllowListSeal.objects.using(self.using).filter(pk=1).update(touched=_NEXT_TOUCHED)
        except DatabaseError as error:
            logger.error("The other processes were not told to verify all rows: %s", type(error).__name__)

    def basis(self, row: SealRow) -> Basis:
        """Return the verified rows under a genuine seal, for a change that has locked it.

        Raises:
            AllowListIntegrityFailure: the rows do not match *row*.
        """
        _owner, transient = connections[self.using].__dict__.get("_amesh_transient", (None, None))
        kept = self._snapshot
        for one in (kept, transient if _owner is self else None):
            if one is not None and one.row == row:
                return Basis(one)
        newer = kept.newer(self, row) if kept is not None and kept.revision < row.revision else None
        if kept is not None and newer is not None:
            return Basis(kept, newer)
        return Basis(self.verify_rows(row))

    # --- for changes and reports, which hold the lock of the seal row ---

    def verify_rows(self, row: SealRow | None) -> Snapshot:
        """Verify all rows against *row*, without keeping anything in the process.

        Raises:
            AllowListIntegrityFailure: they do not match.
        """
        try:
            return Snapshot.build(self, row)
        except AllowListIntegrityFailure as error:
            raise _logged(error) from None

    def verify_age(self, row: SealRow | None) -> SealRow | None:
        """Verify that a genuine seal is not older than one that this host has seen.

        Returns:
            *row*, or a newer seal that was committed after *row* was read.

        Raises:
            AllowListIntegrityFailure: the seal is older, or the newest one is not known.
            KeyStoreError: the TPM cannot be used.
        """
        try:
            return self.check_age(row)[0]
        except AllowListIntegrityFailure as error:
            raise _logged(error) from None

    # --- the states ---

    def _read(self, connection: BaseDatabaseWrapper) -> Snapshot:
        """Read the seal, and return the snapshot, brought up to date.

        Raises:
            django.db.Error: the database is down or not migrated.
        """
        before = self._snapshot
        known = before.row if before is not None else None  # another thread may apply a change while this one reads
        row = self.read_seal()
        if before is not None and row is not None and row == before.row and not reads_for_itself(connection):
            if time.monotonic() <= self._look_at or self._look_again(row):
                return before
            row = self.read_seal()
        _check_form(row)
        if reads_for_itself(connection):
            return self._transient(connection, row)
        return self._advance(connection, before, known, row)

    def _transient(self, connection: BaseDatabaseWrapper, row: SealRow | None) -> Snapshot:
        """Return the list as an open transaction sees it. It is kept with the connection, never with the process."""
        owner, kept = connection.__dict__.get("_amesh_transient", (None, None))
        if isinstance(kept, Snapshot) and owner is self and row is not None and kept.row == row:
            return kept
        self.unlock()
        try:
            try:
                found = Snapshot.build(self, row)
            except AllowListIntegrityFailure:  # another process may have changed the list between the two reads
                again = self.read_seal()
                if again == row:
                    raise
                found = Snapshot.build(self, again)
        except AllowListIntegrityFailure as error:
            raise _logged(error) from None
        connection.__dict__["_amesh_transient"] = (self, found)
        return found

    def _advance(
        self, connection: BaseDatabaseWrapper, before: Snapshot | None, known: SealRow | None, row: SealRow | None
    ) -> Snapshot:
        """Bring the snapshot of the process up to the seal that was read.

        Args:
            before: the snapshot.
            known: its seal at the time when *row* had not been read yet.
            row: the seal that was read.
        """
        broken = self._broken
        if broken is not None and row == broken.row and time.monotonic() < broken.until:
            raise copy.copy(broken.error)
        if before is not None and known is not None:
            error = objection(row, known)
            # It was read after the newer one was adopted. A transaction that began earlier may see it, a fresh read may not.
            if error is not None:
                if error.reason == "rolled_back" and connection.in_atomic_block:
                    committed = self.read_committed_seal()
                    _check_form(committed)
                    if objection(committed, known) is None:
                        return before
                raise _logged(error)
        self.unlock()
        with self._lock:
            started = time.monotonic()
            for _attempt in range(_MAX_ATTEMPTS):
                found = self._try(row)
                if found is not None:
                    return found
                again = self.read_seal()
                if again == row:
                    break
                _check_form(again)
                row = again
            else:
                row, found = without_writers(self.using, self._read_and_try)
                if found is not None:
                    return found
            error = failure("rows_mismatch" if row is not None else "seal_missing")
            if row is not None:
                self._pause(row, started, error)
            raise _logged(error)

    def _try(self, row: SealRow | None) -> Snapshot | None:
        """Return the snapshot for *row*, adopted; None if the rows do not match it (they may have changed since). Needs the lock."""
        kept = self._snapshot
        if kept is not None and row is not None:
            if kept.row == row or kept.revision > row.revision:
                return kept
            error = objection(row, kept.row) if kept.row is not None else None
            if error is not None:
                raise _logged(error)
        newest = self._check_age(row)
        # A transaction that began before the newest change goes on seeing the list before it. That list is not kept.
        is_past = newest != row and connections[self.using].in_atomic_block and self.read_seal() == row
        if not is_past:
            row = newest
        if kept is not None and row is not None and not is_past:
            if row.touched == 0 and self.is_genuine(row) and kept.catch_up(self, row):
                self._note(row)
                return kept
        try:
            found = Snapshot.build(self, row)
        except AllowListIntegrityFailure as error:
            if error.reason in (
                "rows_mismatch",
                "seal_missing",
            ):  # the first device may have come after the seal was read
                return None
            raise _logged(error) from None
        self._broken = None
        if row is not None and not is_past:
            self._note(row)
            self._snapshot = found
        return found

    def _read_and_try(self) -> tuple[SealRow | None, Snapshot | None]:
        """Read the seal, and return it with what :meth:`_try` returns for it. Needs the lock."""
        row = self.read_seal()
        _check_form(row)
        return row, self._try(row)

    def _check_age(self, row: SealRow | None) -> SealRow | None:
        """Reject a list that is older than one that this host has seen, before any of it is used. Needs the lock.

        Returns:
            *row*, or a newer seal that was committed after *row* was read.
        """
        started = time.monotonic()
        if row is None and started < self._empty_until:
            return row
        if row is not None and not self.is_genuine(row):
            return row  # rejected as ``seal_mismatch`` by the caller
        stamp = self._mark_stamp()
        try:
            newest, self._is_noted = self.check_age(row)
        except AllowListIntegrityFailure as error:
            self._pause(row, started, error)
            raise _logged(error) from None
        self._stamp = stamp
        if newest is None:
            self._empty_until = time.monotonic() + _EMPTY_SECONDS
        return newest

    def _look_again(self, row: SealRow) -> bool:
        """Return True if the list that this process knows is still the newest that the processes of this host have seen."""
        self.unlock()
        with self._lock:
            if time.monotonic() < self._look_at:
                return True
            try:
                if self._mark_stamp() != self._stamp and self._check_age(row) != row:
                    return False
                self._note(row)
            except BaseException:
                self._snapshot = None
                raise
        return True

    def _note(self, row: SealRow) -> None:
        """Store that this verified list is the newest, unless another process has stored it. Needs the lock."""
        if not self._is_noted:
            self._is_noted = self.remember(row, seconds=0)  # requests wait for our lock
            self._stamp = self._mark_stamp()
        self._look_at = time.monotonic() + (_LOOK_SECONDS if self._is_noted else _NOTE_SECONDS)

    def _pause(self, row: SealRow | None, started: float, error: AllowListIntegrityFailure) -> None:
        """Do not examine this seal at each request. Needs the lock."""
        pause = max(_MIN_PAUSE_SECONDS, _PAUSE_FACTOR * (time.monotonic() - started))
        self._broken = Broken(row, time.monotonic() + pause, copy.copy(error))


def _check_form(row: SealRow | None) -> None:
    if row is not None and not row.is_well_formed:
        raise _logged(failure("seal_mismatch"))


def _logged(error: AllowListIntegrityFailure) -> AllowListIntegrityFailure:
    logger.critical("%s", error.text(manage_py))
    return error
