"""Protection against rollback: is the list in the database older than one that this host has seen? (design.md, decision 3)"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connections, transaction
from django.utils.translation import gettext as _

from amesh_django.models import AuditEvent
from amesh_django.spelling import manage_py
from authmesh.device import LocalDevice
from authmesh.keystore.tpm.counter import TpmCounter
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure, AmeshError, StorageError

from .chain import ChainedRows, data_of
from .high_water import LOCK_SECONDS, HighWater, Marks
from .keys import SHARED_OWNER, SealKeys
from .marks import Mark, is_older, is_other, other_list, own_directory, reseal_hint
from .owner import own_identity, server_directory
from .revocations import Revocation, Revocations
from .sealing import SealRow

logger = logging.getLogger("amesh_django.allow_list")

#: How often in a row the mark may find the lock taken, a second apart, before that is logged.
_MAX_BUSY = 5
#: Kinds of events after which a device is no longer one to be revoked again.
_TRUSTING = (AuditEvent.Kind.TRUST, AuditEvent.Kind.REINSTATE)


@dataclass(frozen=True, slots=True)
class Memory:
    """The high-water mark of one database, for people.

    Attributes:
        revision: revision of the newest list that this host has seen; None if it has seen none.
        kept: ``tpm`` (a file, and a counter in the TPM that proves the file to be the newest), ``file`` (which anyone who can restore
            the database can restore too), or ``none``.
        where: the file; empty for ``none``.
    """

    revision: int | None
    kept: str
    where: str


class GuardedRows(ChainedRows):
    """Adds the high-water mark: which list is the newest that this host has seen.

    A device that is not in place yet has no mark: nothing is compared, and nothing is stored.
    """

    def __init__(self, using: str, *, device: LocalDevice | None = None) -> None:
        super().__init__(using, device=device)
        self._has_warned = False
        self._times_busy = 0

    def check_age(self, row: SealRow | None) -> tuple[SealRow | None, bool]:
        """Compare a list with the high-water mark.

        Args:
            row: a genuine seal, or None if there are no devices.

        Returns:
            the seal that is good: *row*, or a newer one that was committed after *row* was read; and True if that is the mark.

        Raises:
            AllowListIntegrityFailure: the list is another one (``other_epoch``) or older (``rolled_back``), or the newest list is not
                known (``revision_lost``).
            KeyStoreError: the TPM cannot be used.
        """
        place = self._place()
        if place is None:
            return row, True
        file, name = place
        try:
            marks = file.load()
        except AllowListBusy:  # another process has just moved the marks to the new secret
            file, name = self._place() or place
            marks = file.load()
        error = _objection(marks, name, row)
        if error is not None:
            # A mark is stored after its commit. Unless an old list was restored, what is committed now is not older.
            row = self.read_committed_seal()
            if row is None or not self.is_genuine(row) or _objection(marks, name, row) is not None:
                raise error
        return row, marks.lists.get(name) == (row.mark if row is not None else None)

    def remember(self, row: SealRow, seconds: float = LOCK_SECONDS) -> bool:
        """Store the mark of a verified list. Return False if the mark could not be written and must be tried again.

        Args:
            row: the seal of the list.
            seconds: how long to wait for another process of this host that holds the lock of the device directory. 0 in a request,
                which is accepted without the mark.

        Raises:
            AllowListIntegrityFailure, KeyStoreError: as for :meth:`check_age`.
        """
        place = self._place()
        if place is None:
            return True
        file, name = place
        try:
            before, after = file.remember(name, row.mark, seconds)
            self._follow(file, row, seconds)
        except (StorageError, AllowListBusy) as error:
            self._times_busy += isinstance(error, AllowListBusy)
            is_passing = isinstance(error, AllowListBusy) and not seconds and self._times_busy < _MAX_BUSY
            if not is_passing and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "Cannot record the newest list revision: %s A process that starts later cannot detect that an older list was "
                    "restored.",
                    error.text(manage_py),
                )
            return False
        self._times_busy = 0
        if name not in before.lists:
            _announce(file, name, before, after)
        objection = _objection(after, name, row)
        if objection is not None and (after.lists[name].revision == row.revision or objection.reason == "other_epoch"):
            raise objection
        return True

    def remember_on_commit(self, row: SealRow) -> None:
        """Store the mark of a change of this process once it is committed, so that a backup restored right after it is detected."""

        def note() -> None:
            try:
                self.remember(row)
            except AllowListIntegrityFailure as error:
                logger.critical("%s", error.text(manage_py))
            except AmeshError as error:  # the change itself is committed
                logger.error("Cannot record the newest list revision: %s", error.text(manage_py))

        if self._device is None:
            transaction.on_commit(note, using=self.using)

    def note_revocations_on_commit(self, keys: SealKeys, events: Sequence[AuditEvent]) -> None:
        """Store which devices were revoked, and which trusted again, once that is committed.

        Args:
            keys: keys of the seal of the list.
            events: the changes.
        """
        name = database_name(self.using)
        if self._device is not None or name is None:
            return
        rows = [(event, data_of(event).get("row", {})) for event in events if event.device_id]
        revoked = [
            Revocation(event.device_id, event.subject, row["revoked_at"], event.actor, event.text)
            for event, row in rows
            if row.get("revoked_at") and event.kind in (AuditEvent.Kind.REVOKE, AuditEvent.Kind.ROTATE)
        ]
        trusted = [event.device_id for event, row in rows if event.kind in _TRUSTING and not row.get("revoked_at")]
        if revoked or trusted:
            file = self._revocations(keys)
            transaction.on_commit(lambda: file.note(name, revoked, trusted), using=self.using, robust=True)

    def revocations(self) -> list[Revocation]:
        """Return the newest revocations that this host has made, the oldest first, as a file beside the database has them."""
        name = database_name(self.using)
        return self._revocations(self.keys).of(name) if self._device is None and name is not None else []

    def _revocations(self, keys: SealKeys) -> Revocations:
        return Revocations(server_directory(), (keys, *(other for other in self.all_keys if other is not keys)))

    def accept_on_commit(self, row: SealRow) -> None:
        """Store the mark of a list that a person accepted once it is committed, whatever the mark was before.

        Raises, at commit:
            StorageError, AllowListBusy, KeyStoreError: the list is committed, and is rejected as before.
        """
        place = self._place()
        if place is None:
            return
        file, name = place

        def accept() -> None:
            try:
                file.accept(name, row.mark)
                self._follow(file, row, LOCK_SECONDS)
            except (StorageError, AllowListBusy) as error:
                if file.has_counter:  # the list would be rejected as before
                    raise
                logger.warning("Cannot record the newest list revision: %s", error.text(manage_py))

        transaction.on_commit(accept, using=self.using)

    def newest(self) -> Mark | None:
        """Return the high-water mark, or None if it is not known."""
        place = self._place()
        if place is None:
            return None
        file, name = place
        with contextlib.suppress(AllowListIntegrityFailure):
            return file.load().lists.get(name)
        return None

    def memory(self) -> Memory:
        """Return the high-water mark, and where it is kept.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: the keys, or the TPM, cannot be used.
        """
        place = self._place()
        if place is None:
            return Memory(None, "none", "")
        file, name = place
        with contextlib.suppress(AllowListIntegrityFailure):
            marks = file.load()
            known = marks.lists.get(name)
            if known is None:
                return Memory(None, "none", "")
            return Memory(known.revision, "tpm" if marks.counter is not None else "file", str(file.path))
        return Memory(None, "tpm", str(file.path))

    def _mark_stamp(self) -> object:
        """Return a value that changes whenever a process of this host stores a mark. Costs one ``stat``."""
        place = self._place()
        return place[0].stamp() if place is not None else None

    def _place(self) -> tuple[HighWater, str] | None:
        """Return the file of the marks and the name of this database in it, or None if this list has no mark."""
        if self._device is not None:
            return None
        name = database_name(self.using)
        return None if name is None else (self._current_file(), name)

    def _current_file(self) -> HighWater:
        """Return the file of the marks under the keys that it was written with: the old ones until the list has the new ones."""
        files = [self._high_water_file(keys) for keys in self.all_keys]
        if len(files) == 1:
            return files[0]
        for file in files:
            file.others = tuple(other for other in files if other is not file)
        return next((file for file in files if file.is_ours), files[-1])

    def _follow(self, file: HighWater, row: SealRow, seconds: float) -> None:
        """Write the marks with the first keys once the list is sealed with them."""
        if len(self.all_keys) > 1 and self.under(row) is self:
            first = self._high_water_file(self.keys)
            if not first.is_ours:
                file.move_to(first, seconds)

    def _high_water_file(self, keys: SealKeys | None = None) -> HighWater:
        keys, identity = keys or self.keys, own_identity()
        owner = keys.owner
        if owner == SHARED_OWNER:  # hosts that share a secret have a file each, and none is valid for another host
            owner = f"{SHARED_OWNER} {identity.device_id if identity else ''}"
        counter = None
        if identity is not None and identity.storage_backend == "tpm2":
            counter = TpmCounter(tcti_name(), owner, keys.counter)
        return HighWater(server_directory(), keys.high_water, owner, counter)


def database_name(using: str) -> str | None:
    """Return the name of a database in the file of the marks, or None for a database that ends with this process.

    The host is no part of it: a backup that is restored on another database host must be the same database to us.
    """
    connection = connections[using]
    settings = connection.settings_dict
    name = str(settings["NAME"] or settings["OPTIONS"].get("service", ""))  # PostgreSQL may have it in pg_service.conf
    if connection.vendor == "sqlite":
        if connection.is_in_memory_db():  # type: ignore[attr-defined]
            return None
        name = os.path.realpath(name)
    return f"{connection.vendor}:{name}"


def _objection(marks: Marks, name: str, row: SealRow | None) -> AllowListIntegrityFailure | None:
    """Return the error for a list that is not known to be the newest, or None if nothing speaks against it."""
    known = marks.lists.get(name)
    if known is None:
        if marks.complete:
            return None
        return AllowListIntegrityFailure(
            _("The high-water mark of this database was lost, so the list in the database may be an old one."),
            hint=reseal_hint(),
            reason="rolled_back",
        )
    if is_other(row.mark if row is not None else None, known):
        return other_list()
    if not is_older(row.mark if row is not None else None, known):
        return None
    if row is None:
        message = _("The database contains no list, but this server has seen one in it (revision %(known)d).")
    elif row.revision == known.revision:
        message = _(
            "The list in the database is not the one that this server has seen under the same revision (%(known)d)."
        )
    else:
        message = _(
            "The list in the database is older (revision %(found)d) than one that this server has seen (revision %(known)d)."
        )
    return AllowListIntegrityFailure(
        message % {"found": row.revision if row is not None else 0, "known": known.revision},
        hint=reseal_hint(last=own_directory()),
        reason="rolled_back",
    )


def _announce(file: HighWater, name: str, before: Marks, after: Marks) -> None:
    if after.counter is not None:
        how = "A counter in the TPM proves that the file is the newest one."
    else:
        how = "Without a TPM, restoring that file together with the database is not detected."
    logger.info("From now on, %s records which list of %s is the newest. %s", file.path, name, how)
    others = sorted({*before.lists} - {name})
    if others:
        logger.warning(
            "This server has seen lists in other databases (%s), and sees the one of %s for the first time. If it is a copy of one "
            "of them, devices that were revoked after it was made are trusted again: check the list. If another server uses the other "
            "database, such as one for tests, give each server its own device directory (AMESH['DIR']) and its own secret of the seal.",
            ", ".join(others),
            name,
        )
