"""The lock of the seal row and of the end of the audit log, transactions that are tried again, and replacing the seal."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import IntegrityError, OperationalError, connections, transaction
from django.utils.translation import gettext as _

from amesh_django.models import AllowListSeal
from authmesh.protocol.errors import AllowListBusy
from authmesh.protocol.multiset import MASK_BYTES

from .database import is_conflict, read_for_itself
from .sealing import Epoch, LogEnd, SealRow
from .snapshot import VerifiedList

T = TypeVar("T")

#: How often a change is tried again if another one was committed meanwhile.
MAX_ATTEMPTS = 30


class ConcurrentChange(Exception):
    """Another change was committed after this one began; nothing was written."""


class LockableList(VerifiedList):
    """Adds the locks that a change holds."""

    def while_locked(self, work: Callable[[SealRow | None, tuple[LogEnd, bool] | None], T]) -> T:
        """Run *work* while neither the list nor the audit log can be changed, with the seal and the end of the log as they are.

        Args:
            work: called again if another change was committed meanwhile.

        Raises:
            AllowListBusy: other changes were committed all the time.
        """

        def locked() -> T:
            seal = self._lock_seal()
            return work(seal, self.lock_end())

        return self._retried(locked)

    def while_end_locked(self, work: Callable[[tuple[LogEnd, bool] | None], T]) -> T:
        """Run *work* as :meth:`while_locked` does, but with the end of the audit log locked only."""
        return self._retried(lambda: work(self.lock_end()))

    def in_transaction(self, work: Callable[[], T]) -> T:
        """Run *work* in one transaction without any lock of the list, again if the database reports a conflict.

        Raises:
            AllowListBusy: it reported conflicts all the time.
        """
        return self._retried(work)

    def _retried(self, work: Callable[[], T]) -> T:
        """Run *work* in one transaction, again if another change was committed meanwhile. Either all of it happens, or nothing.

        Raises:
            AllowListBusy: other changes were committed all the time.
        """
        is_nested = connections[self.using].in_atomic_block
        for attempt in range(MAX_ATTEMPTS):
            try:
                with transaction.atomic(using=self.using):
                    return work()
            except ConcurrentChange:
                pass
            except OperationalError as error:
                if not is_conflict(error):
                    raise
                if is_nested:  # the outer transaction must be tried again, and only its owner can do that
                    break
            time.sleep(min(0.5, 0.005 * 2**attempt) * (0.5 + secrets.randbelow(1000) / 1000))
        raise AllowListBusy(
            _("The list was busy with other changes; nothing was changed."), hint=_("Try again in a moment.")
        )

    def _trusted_seal(self) -> SealRow:
        """Return the locked seal, after it was verified that no change from outside Django would be sealed with this one.

        Raises:
            ConcurrentChange: another process sealed the first devices just now.
        """
        row = self._lock_seal()
        # If there is no seal, there is nothing to lock: another process may add the first devices until our seal is written.
        first = self._first_seal() if row is None else row
        if row is None or row.touched or not self.is_genuine(row):
            self.verify_rows(row)
        if self.verify_age(row) != row:  # a change would make an old list the newest one
            raise ConcurrentChange
        return first

    def _lock_seal(self) -> SealRow | None:
        """Lock the seal row for the rest of the transaction, and return it. None if there is no list yet."""
        connection = connections[self.using]
        read_for_itself(connection)
        seals = AllowListSeal.objects.using(self.using).filter(pk=1)
        if not connection.features.has_select_for_update:
            seals.update(id=1)  # a write is what locks an SQLite database
            return self.read_seal()
        for _attempt in range(2):
            is_locked = bool(list(seals.select_for_update().values_list("pk")))
            row = self.read_seal()
            if is_locked or row is None:
                break  # otherwise the row was made between the two reads, and is not locked
        return row

    def _first_seal(self) -> SealRow:
        """Seal a list that has no seal yet as empty, so that there is a row to lock before anything else is done.

        Raises:
            ConcurrentChange: another process did so just now.
        """
        seal = self.make_seal(
            Epoch.new(),
            LogEnd(),
            revision=0,
            total=0,
            count=0,
            controllers=0,
            groups="",
            r=secrets.token_bytes(MASK_BYTES),
        )
        try:
            with transaction.atomic(using=self.using):
                AllowListSeal.objects.using(self.using).create(id=1, **seal._asdict())
        except IntegrityError:
            raise ConcurrentChange from None
        return seal

    def replace_seal(self, before: SealRow, after: SealRow) -> None:
        """Write a new seal over the one that was read.

        Raises:
            ConcurrentChange: another seal is there.
        """
        seals = AllowListSeal.objects.using(self.using)
        if not seals.filter(pk=1, revision=before.revision, hmac=before.hmac).update(**after._asdict()):
            raise ConcurrentChange
