"""Rekeying: the list is sealed with another secret, while processes that know both go on accepting it."""

from __future__ import annotations

import logging
import secrets

from amesh_django.models import AllowListChange
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from .change import ConcurrentChange
from .revoking import RevocableList
from .sealing import BATCH_SIZE
from .verified import failure

logger = logging.getLogger("amesh_django.allow_list")


class RekeyableList(RevocableList):
    """Adds the replacement of the secret of the seal (``AMESH["SEAL_KEY_FILES"]``)."""

    def rekey(self) -> bool:
        """Seal the list and the journal with the first secret, if they match their seal with any of the secrets.

        Returns:
            False if there is nothing to do: there is no list, or all of it is under the first secret.

        Raises:
            AllowListIntegrityFailure: the list is rejected; nothing was changed.
            AllowListBusy: other changes were committed all the time; nothing was changed.
            IdentityMissing, DirectoryError, KeyStoreError: a secret cannot be used; nothing was changed.
        """
        self.unlock()
        return self._retried(self._rekey)

    def _rekey(self) -> bool:
        before = self._lock_seal()
        if before is None:
            self.verify_rows(None)
            return False
        self.verify_rows(before)
        if self.verify_age(before) != before:
            raise ConcurrentChange
        lines = self._rekey_journal()
        keyed = self.under(before)
        if keyed is self:
            self.remember_on_commit(before)  # moves the marks of this host
            return lines > 0
        total = 0
        verified = keyed.sealed_total(before)
        for values in self.rows():  # read again: what is sealed must be what was verified
            total += self.hash_row(values)
            verified -= keyed.hash_row(values)
        if verified % MODULUS:
            raise failure("rows_mismatch")
        after = self.make_seal(
            self.epoch_after(before),
            revision=before.revision + 1,
            total=total % MODULUS,
            count=before.count,
            controllers=before.controllers,
            groups=before.groups,
            r=secrets.token_bytes(MASK_BYTES),
        )
        self.replace_seal(before, after)
        self.remember_on_commit(after)
        logger.info("The allow list was sealed with another secret; %d lines of the journal were, too.", lines)
        return True

    def _rekey_journal(self) -> int:
        """Renew the MAC of each genuine line that has that of an older secret. Lines that amesh did not write keep theirs."""
        changed: list[AllowListChange] = []
        table = AllowListChange.objects.using(self.using)
        for line in self.journal():
            mac = self.journal_mac(line)
            if line.mac != mac and self.is_genuine_line(line):
                line.mac = mac
                changed.append(line)
        table.bulk_update(changed, ["mac"], batch_size=BATCH_SIZE)
        return len(changed)
