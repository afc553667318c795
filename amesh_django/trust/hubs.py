"""What hubs have said about keys: rows under a MAC, and for each hub a masked multiset hash over all of them (docs/fleet.md §5).

The rows are written in the transaction of a change, or of a message without changes, and outlive the devices that they are about. A row
that was changed outside Django is taken for one that does not exist, because nobody must be able to prevent a revocation by damaging
rows. The damage stays visible: the hash of the hub no longer fits, until a person reseals the list.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import itertools
import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from django.db import IntegrityError, connections, transaction
from django.db.models import F, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from amesh_django.models import Hub, HubEntry
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.multiset import MODULUS

from .damage import each_row
from .hub_macs import ENTRY_COLUMNS, HUB_COLUMNS, entry_mac, hub_mac, set_total, term, total_of
from .keys import SealKeys
from .sealing import BATCH_SIZE

_Row = TypeVar("_Row", Hub, HubEntry)

logger = logging.getLogger("amesh_django.fleet")

#: Keys that one query looks up.
_MAX_KEYS = 500
_EARLIEST, _LATEST = dt.datetime(1971, 1, 1, tzinfo=dt.UTC), dt.datetime(9990, 1, 1, tzinfo=dt.UTC)


def stored_time(moment: dt.datetime) -> dt.datetime:
    """Return a time that a hub names as a column holds it: in milliseconds, and without a time zone if USE_TZ is off.

    A year that some database, or some time zone, cannot have becomes the next one that all can.
    """
    moment = min(max(moment, _EARLIEST), _LATEST)
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    return moment if timezone.is_aware(timezone.now()) else timezone.make_naive(moment)


def key_name(public_key: bytes) -> str:
    """Return the hash of a public key as :class:`~amesh_django.models.HubEntry` holds it."""
    return b64url_encode(hashlib.sha256(public_key).digest())


def is_allowed(entry: HubEntry) -> bool:
    """Return True if a person trusted the key, or lifted its suspension, in spite of what the hub said last."""
    return entry.allowed_epoch == entry.epoch and (entry.allowed_serial or 0) >= entry.serial


class HubRows:
    """The rows of hubs in one database.

    Args:
        using: database alias.
        all_keys: keys with which the rows may have been written.
        keys: keys with which the row of a new hub is written. The words of a hub have the keys of its row.
    """

    def __init__(self, using: str, all_keys: Sequence[SealKeys], keys: SealKeys) -> None:
        self.using = using
        self._all_keys = all_keys
        self._keys = keys
        #: The MACs of the words that were read: hub and key → MAC.
        self._read: dict[tuple[str, str], str] = {}
        #: The keys of the rows of hubs that were read: device ID → keys.
        self._of_hub: dict[str, SealKeys] = {}

    # --- hubs ---

    def every(self) -> list[Hub]:
        """Return the rows of all hubs. They are not checked, see :meth:`is_genuine`."""
        return list(_readable(Hub.objects.using(self.using)))

    def is_genuine(self, hub: Hub) -> bool:
        """Return True if amesh wrote the row."""
        return self._keys_of(hub) is not None

    def lock(self, device_id: str, *, make: bool = True) -> Hub:
        """Return the row of a hub, locked for the rest of the transaction.

        If there is none, it is made, unless *make* is False: then the result is not saved. A row that was changed outside Django is
        returned as if it were new: the hub then sends all its revocations again.
        """
        rows = Hub.objects.using(self.using).filter(device_id=device_id)
        if not connections[self.using].features.has_select_for_update:
            rows.update(lease_by=F("lease_by"))  # a write is what locks an SQLite database
        found = self._locked(device_id)
        if found is None and not make:
            return self._empty(Hub(device_id=device_id))
        if found is None:
            try:
                with transaction.atomic(using=self.using):
                    new = self._empty(Hub(device_id=device_id))
                    new.save(using=self.using, force_insert=True)
            except IntegrityError:
                pass
            found = self._locked(device_id)
            if found is None:
                raise RuntimeError(f"The row of the hub {device_id} cannot be read.")
        if not self.is_genuine(found):
            logger.critical(
                "The row of the hub %s was changed outside Django. It is not used: the hub sends all its revocations again. To see what "
                "else was changed, run: manage.py amesh_integrity",
                device_id,
            )
            fresh = self._empty(Hub(pk=found.pk, device_id=device_id))
            fresh.lease_until, fresh.lease_by = found.lease_until, found.lease_by
            return fresh
        return found

    def save_hub(self, hub: Hub) -> None:
        """Write the row of a hub that was locked, without its lease."""
        hub.mac = hub_mac(hub, self._writing(hub))
        hub.save(using=self.using, update_fields=[*HUB_COLUMNS[1:], "mac", "minute_at", "minute_count"])

    # --- words ---

    def about(self, keys: Iterable[str]) -> list[HubEntry]:
        """Return what hubs have said about keys. A row that was changed outside Django is logged, and left out.

        Args:
            keys: hashes of keys, as in :class:`~amesh_django.models.HubEntry`.
        """
        names, found = list(dict.fromkeys(keys)), []
        for start in range(0, len(names), _MAX_KEYS):
            rows = HubEntry.objects.using(self.using).filter(key__in=names[start : start + _MAX_KEYS])
            found += [row for row in _readable(rows) if self._check(row)]
        return found

    def _check(self, row: HubEntry) -> bool:
        if self._keys_of(row) is None:
            logger.critical(
                "The row with what the hub %r said about %r was changed outside Django, and is not used. Run: manage.py amesh_integrity",
                row.hub,
                row.device_id,
            )
            return False
        self._read[row.hub, row.key] = row.mac
        return True

    def put(self, hub: Hub, entries: Sequence[HubEntry]) -> None:
        """Write words of a hub, and keep its hash and number of words up to date. The row of the hub is not saved.

        Args:
            hub: the hub, locked.
            entries: its words, each key once; those that were read with :meth:`about` replace what was read.
        """
        keys = self._writing(hub)
        total = total_of(keys, hub)
        for entry in entries:
            entry.pk, entry.hub = None, hub.device_id
            entry.mac = entry_mac(entry, keys)
            before = self._read.get((entry.hub, entry.key))
            if before is None:  # if a row was changed outside Django, it is replaced, and its term stays in the hash
                hub.entries += 1
            else:
                total -= term(keys, before)
            total += term(keys, entry.mac)
            self._read[entry.hub, entry.key] = entry.mac
        has_target = connections[self.using].features.supports_update_conflicts_with_target
        HubEntry.objects.using(self.using).bulk_create(
            entries,
            batch_size=BATCH_SIZE,
            update_conflicts=True,
            update_fields=[*ENTRY_COLUMNS[2:], "mac"],
            unique_fields=["hub", "key"] if has_target else None,
        )
        set_total(keys, hub, total)

    def remove(self, hub: Hub, entries: Sequence[HubEntry]) -> None:
        """Remove words of a hub that were read. The row of the hub is not saved."""
        keys = self._writing(hub)
        total = total_of(keys, hub) - sum(term(keys, entry.mac) for entry in entries)
        for start in range(0, len(entries), _MAX_KEYS):
            pks = [entry.pk for entry in entries[start : start + _MAX_KEYS]]
            HubEntry.objects.using(self.using).filter(pk__in=pks).delete()
        hub.entries -= len(entries)
        set_total(keys, hub, total)

    def change(self, entries: Sequence[HubEntry]) -> None:
        """Write words that were read with :meth:`about`, of whichever hubs, with the rows of these hubs."""
        by_hub: dict[str, list[HubEntry]] = {}
        for entry in entries:
            by_hub.setdefault(entry.hub, []).append(entry)
        for device_id in sorted(by_hub):  # always in the same order, so that no two changes wait for each other
            hub = self.lock(device_id)
            self.put(hub, by_hub[device_id])
            self.save_hub(hub)

    def knows(self, device_id: str) -> bool:
        """Return True if there is a row of a hub, or a word of one, with a device ID."""
        rows, words = Hub.objects.using(self.using), HubEntry.objects.using(self.using)
        return rows.filter(device_id=device_id).exists() or words.filter(hub=device_id).exists()

    def move(self, before: str, after: str) -> None:
        """Give the row and the words of a hub to the key that replaces its key.

        Rows that amesh did not write stay where they are, and the hash of the hub does not fit afterwards if it did not before.

        Args:
            before: device ID of the hub.
            after: device ID of the new key, with which there are neither rows nor words.
        """
        hub = self._locked(before)
        keys = self._keys_of(hub) if hub is not None else None
        difference, words = 0, HubEntry.objects.using(self.using).filter(hub=before)
        genuine = ((entry, self._keys_of(entry)) for entry in _readable(words.order_by("id")))
        moved = ((entry, its_keys) for entry, its_keys in genuine if its_keys is not None)
        while part := list(itertools.islice(moved, _MAX_KEYS)):
            # Removed and written again, because an UPDATE with a value for each row is ten times slower.
            HubEntry.objects.using(self.using).filter(pk__in=[entry.pk for entry, _keys in part]).delete()
            for entry, its_keys in part:
                old_mac, entry.pk, entry.hub = entry.mac, None, after
                entry.mac = entry_mac(entry, its_keys)
                difference += term(its_keys, entry.mac) - term(its_keys, old_mac)
            HubEntry.objects.using(self.using).bulk_create([entry for entry, _keys in part], BATCH_SIZE)
        if hub is not None and keys is not None:
            hub.device_id = after
            set_total(keys, hub, total_of(keys, hub) + difference)
            hub.mac = hub_mac(hub, keys)
            hub.save(using=self.using, update_fields=["device_id", "digest", "mask", "mac"])

    def forget(self, device_id: str) -> int:
        """Remove the row and the words of a hub. Return the number of words."""
        self._locked(device_id)
        count, _of_model = HubEntry.objects.using(self.using).filter(hub=device_id).delete()
        Hub.objects.using(self.using).filter(device_id=device_id).delete()
        return count

    def oldest_without_device(self, hub: Hub, count: int, devices: Any) -> list[HubEntry]:
        """Return the oldest words of a hub about keys that no device of the list has.

        Args:
            hub: the hub.
            count: how many at most.
            devices: query set of the device IDs in the list.
        """
        rows = HubEntry.objects.using(self.using).filter(hub=hub.device_id).exclude(device_id__in=devices)
        return [row for row in itertools.islice(_readable(rows.order_by("at", "id")), count) if self._check(row)]

    # --- the whole ---

    def problems(self) -> dict[str, list[str]]:
        """Return what is wrong with the rows: device ID of a hub → sentences. Rows that amesh did not write are named."""
        found: dict[str, list[str]] = {}
        hubs = {hub.device_id: hub for hub in self.every()}
        counts, totals = dict[str, int](), dict[str, int]()
        for entry in self._all():
            keys = self._keys_of(entry)
            if keys is None:
                text = _("what the hub said about %(device)s (%(event)s) was changed outside Django.")
                found.setdefault(entry.hub, []).append(text % {"device": entry.device_id, "event": entry.event})
                continue
            counts[entry.hub] = counts.get(entry.hub, 0) + 1
            totals[entry.hub] = totals.get(entry.hub, 0) + term(keys, entry.mac)
        for name in sorted({*counts, *hubs}):
            hub = hubs.get(name)
            keys = self._keys_of(hub) if hub is not None else None
            if hub is None or keys is None:
                found.setdefault(name, []).append(_("the row of the hub was changed or removed outside Django."))
            elif total_of(keys, hub) != totals.get(name, 0) % MODULUS:
                missing = hub.entries - counts.get(name, 0)
                text = ngettext(
                    "%(count)d row with what the hub said about a device is missing.",
                    "%(count)d rows with what the hub said about devices are missing.",
                    missing,
                )
                if missing <= 0:
                    text = _("a row with what the hub said about a device is an older one that was restored.")
                found.setdefault(name, []).append(text % {"count": missing})
        return found

    def renew(self, *, accept: bool) -> None:
        """Write all rows again, under the keys of this object.

        Args:
            accept: True accepts the rows that amesh wrote as all that there are, and removes the others. A hub whose row it did not write
                begins again, and sends all its revocations. False keeps all that is wrong with the rows as it is.
        """
        wrong = {} if accept else self.problems()
        totals, counts, good = dict[str, int](), dict[str, int](), list[HubEntry]()
        rows = HubEntry.objects.using(self.using)
        for entry in list(self._all()):
            if self._keys_of(entry) is not None:
                entry.mac = entry_mac(entry, self._keys)
                totals[entry.hub] = totals.get(entry.hub, 0) + term(self._keys, entry.mac)
                counts[entry.hub] = counts.get(entry.hub, 0) + 1
                good.append(entry)
            elif accept:
                rows.filter(pk=entry.pk).delete()
        rows.bulk_update(good, ["mac"], batch_size=_MAX_KEYS)
        for hub in self.every():
            is_genuine = self.is_genuine(hub)
            if not is_genuine and not accept:
                continue
            if not hub.device_id:  # it cannot be read
                hub.delete(using=self.using)
                continue
            renewed = hub if is_genuine else self._empty(Hub(pk=hub.pk, device_id=hub.device_id))
            total = totals.pop(hub.device_id, 0)
            if hub.device_id in wrong:  # it must not fit afterwards, either
                total = secrets.randbelow(MODULUS)
            else:
                renewed.entries = counts.get(hub.device_id, 0)
            self._write(renewed, total)
        for name in totals if accept else ():  # a hub whose row is missing
            hub = Hub(device_id=name, entries=counts[name])
            self._write(hub, totals[name])

    def _write(self, hub: Hub, total: int) -> None:
        set_total(self._keys, hub, total)
        hub.mac = hub_mac(hub, self._keys)
        hub.save(using=self.using)

    def _all(self) -> Iterator[HubEntry]:
        return _readable(HubEntry.objects.using(self.using).order_by("id"))

    # --- keys and MACs ---

    def _locked(self, device_id: str) -> Hub | None:
        rows = Hub.objects.using(self.using).filter(device_id=device_id)
        if connections[self.using].features.has_select_for_update:
            rows = rows.select_for_update()
        found = next(_readable(rows), None)
        keys = self._keys_of(found) if found is not None else None
        if keys is not None:
            self._of_hub[device_id] = keys
        return found

    def _writing(self, hub: Hub) -> SealKeys:
        """Return the keys of the row of a hub as it was read, which its words have, too. Only a rekey replaces them."""
        return self._of_hub.get(hub.device_id, self._keys)

    def _keys_of(self, row: Hub | HubEntry) -> SealKeys | None:
        """Return the keys with which amesh wrote a row, or None if it did not. Takes constant time for each."""
        mac = str(row.mac).encode("utf-8", "replace")
        make = hub_mac if isinstance(row, Hub) else entry_mac
        return next((keys for keys in self._all_keys if hmac.compare_digest(make(row, keys).encode(), mac)), None)

    def _empty(self, hub: Hub) -> Hub:
        """Return the row of a hub that has said nothing yet, with its MAC."""
        self._of_hub.pop(hub.device_id, None)
        set_total(self._keys, hub, 0)
        hub.mac = hub_mac(hub, self._keys)
        return hub


def _readable(rows: QuerySet[_Row]) -> Iterator[_Row]:
    """Yield rows. One that cannot be read has no MAC, so that it is taken for a forged one."""
    for pk, row in each_row(rows):
        yield row if row is not None else rows.model(pk=pk)
