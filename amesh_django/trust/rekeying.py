"""Rekeying: the list is sealed with another secret, while processes that know both go on accepting it."""

from __future__ import annotations

import logging
import secrets

from amesh_django.models import AuditEvent
from authmesh.protocol.multiset import MASK_BYTES, MODULUS

from .chain import event_mac, is_same, link_after, new_event
from .damage import each_row
from .hubs import HubRows
from .keys import SealKeys
from .locking import ConcurrentChange
from .places import Place, forget_place, log_start, write_place
from .revoking import RevocableList
from .sealing import BATCH_SIZE, LogEnd
from .verified import failure

logger = logging.getLogger("amesh_django.allow_list")


class RekeyableList(RevocableList):
    """Adds the replacement of the secret of the seal (``AMESH["SEAL_KEY_FILES"]``)."""

    def rekey(self, by: str = "") -> bool:
        """Seal the list, the audit log, and what hubs have said with the first secret, if the list matches its seal with any of the secrets.

        Args:
            by: the person who decided this, for the audit log.

        Returns:
            False if there is nothing to do: there is no list, or all of it is under the first secret.

        Raises:
            AllowListIntegrityFailure: the list is rejected; nothing was changed.
            AllowListBusy: other changes were committed all the time; nothing was changed.
            IdentityMissing, DirectoryError, KeyStoreError: a secret cannot be used; nothing was changed.
        """
        self.unlock()
        return self._retried(lambda: self._rekey(by))

    def _rekey(self, by: str) -> bool:
        before = self._lock_seal()
        if before is None:
            self.verify_rows(None)
            return False
        self.verify_rows(before)
        if self.verify_age(before) != before:
            raise ConcurrentChange
        known = self._rekey_log(before.log_end)
        HubRows(self.using, self.all_keys, self.keys).renew(accept=False)
        keyed = self.under(before)
        if keyed is self and known == before.log_end:
            self.remember_on_commit(before)  # moves the marks of this host
            return False
        event = new_event(self.keys, AuditEvent.Kind.REKEY, revision=before.revision + 1, by=by)
        log_end = self.extend(self.keys, [*self.begin(self.keys, before), event], known)
        total = 0
        verified = keyed.sealed_total(before)
        for values in self.rows():  # read again: what is sealed must be what was verified
            total += self.hash_row(values)
            verified -= keyed.hash_row(values)
        if verified % MODULUS:
            raise failure("rows_mismatch")
        after = self.make_seal(
            self.epoch_after(before),
            log_end,
            revision=before.revision + 1,
            total=total % MODULUS,
            count=before.count,
            controllers=before.controllers,
            groups=before.groups,
            r=secrets.token_bytes(MASK_BYTES),
        )
        self.replace_seal(before, after)
        self.remember_on_commit(after)
        logger.info("The allow list and its audit log were sealed with another secret.")
        return True

    def _rekey_log(self, known: LogEnd) -> LogEnd:
        """Renew MAC and link of each genuine event that has those of an older secret. What was damaged stays so.

        Args:
            known: end of the log that the seal binds.

        Returns:
            the same place, under the first secret.
        """
        found = self.lock_end()
        before = after = start = log_start(self)
        if start.seq:
            write_place(self, self.keys, Place.START, start)
        changed: list[AuditEvent] = []
        table = AuditEvent.objects.using(self.using)
        bound, end = known, found[0] if found is not None else known
        for _pk, event in each_row(table.order_by("seq", "id")):
            if event is None:
                continue
            old_mac, old_link = event.mac, event.link
            keys = next((keys for keys in self.all_keys if is_same(event_mac(keys, event), old_mac)), None)
            if keys is not None:
                event.mac = event_mac(self.keys, event)
            if event.seq is not None:
                event.link = self._linked(event, old_mac, before, after)
                is_end, is_bound = (LogEnd(event.seq, old_link) == one for one in (end, known))
                before, after = LogEnd(event.seq, old_link), LogEnd(event.seq, event.link)
                bound = after if is_bound else bound
                end = after if is_end else end
            if (event.mac, event.link) != (old_mac, old_link):
                changed.append(event)
            if len(changed) >= BATCH_SIZE:
                table.bulk_update(changed, ["mac", "link"], batch_size=BATCH_SIZE)
                changed.clear()
        table.bulk_update(changed, ["mac", "link"], batch_size=BATCH_SIZE)
        if found is not None and found[1]:
            self.write_end(self.keys, end)
        if (bound, end) != (known, found[0] if found is not None else known):
            forget_place(self, Place.CHECKPOINT)  # it names a link that is no longer there
        return bound

    def _linked(self, event: AuditEvent, mac: str, before: LogEnd, after: LogEnd) -> str:
        """Return the link of an event under the first secret; the one that it has if that was wrong.

        Args:
            event: the event, with its new MAC.
            mac: its MAC before.
            before: number and link of the event before it, as they were.
            after: the same, under the first secret.
        """
        seq = event.seq or 0

        def is_good(keys: SealKeys) -> bool:
            return is_same(link_after(keys, before.link, seq, mac), event.link)

        # After a gap, nothing is known of the event before. The gap stays visible by the numbers.
        if seq != before.seq + 1 or any(is_good(keys) for keys in self.all_keys):
            return link_after(self.keys, after.link, seq, event.mac)
        return event.link
