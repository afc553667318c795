"""Is the list in the database an older one that was put back? Compared with what this host has seen (design.md, decision 3)."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass

from django.db import connections, transaction

from authmesh.keystore.tpm.counter import TpmCounter
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure, AmeshError, StorageError

from .high_water import RESEAL, HighWater, Mark, Marks, is_older
from .keys import SHARED_OWNER, SealKeys, seal_keys
from .owner import acting_device, own_identity, server_directory
from .sealing import SealRow, read_seal, read_seal_by, seal_is_genuine

logger = logging.getLogger("amesh_django.allow_list")

_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Memory:
    """What this host remembers of the list in one database.

    Attributes:
        revision: of the newest list seen; None where none was.
        kept: ``tpm`` (a file, and a counter in the TPM that tells whether the file was put back), ``file`` (which anybody can put
            back who can put back the database), or ``none``.
        where: the file; empty for ``none``.
    """

    revision: int | None
    kept: str
    where: str


def _name(using: str) -> str | None:
    """What the record calls a database; None for one that does not outlive this process.

    Not the host: a backup that is restored beside the old server is the same database to us.
    """
    connection = connections[using]
    settings = connection.settings_dict
    name = str(settings["NAME"] or settings["OPTIONS"].get("service", ""))  # PostgreSQL may have it in pg_service.conf
    if connection.vendor == "sqlite":
        if connection.is_in_memory_db():  # type: ignore[attr-defined]
            return None
        name = os.path.realpath(name)
    return f"{connection.vendor}:{name}"


def _lists(keys: SealKeys) -> HighWater:
    folder = server_directory()
    identity = own_identity()
    # Hosts that share a secret have a record each, and one is not good for another.
    owner = f"{SHARED_OWNER} {identity.device_id if identity else ''}" if keys.owner == SHARED_OWNER else keys.owner
    counter = None
    if identity is not None and identity.storage_backend == "tpm2":
        counter = TpmCounter(tcti_name(), owner, keys.counter)
    return HighWater(folder, keys.record, owner, counter)


def _place(using: str, keys: SealKeys) -> tuple[HighWater, str] | None:
    if acting_device() is not None:  # an identity that is not in place yet has seen nothing
        return None
    name = _name(using)
    return None if name is None else (_lists(keys), name)


def _seen(row: SealRow | None) -> Mark | None:
    return None if row is None else Mark(row.revision, row.hmac)


def check(using: str, keys: SealKeys, row: SealRow | None) -> tuple[SealRow | None, bool]:
    """Refuse a list that is older than the newest that this host has seen.

    Args:
        row: a genuine seal, or None where there are no devices.

    Returns:
        The seal that is good: *row*, or a newer one where others went on since that was read; and True if it was seen last.

    Raises:
        AllowListIntegrityFailure: it is older (``rolled_back``), or which is the newest is not known any more (``revision_lost``).
        KeyStoreError: the TPM that knows can't be used.
    """
    place = _place(using, keys)
    if place is None:
        return row, True
    lists, name = place
    record = lists.load()
    why = _objection(record, name, row)
    if why is not None:
        # What is noted was committed before: unless one was put back, what is read now is no older.
        row = _read_fresh(using)
        if row is None or not seal_is_genuine(keys, row) or _objection(record, name, row) is not None:
            raise AllowListIntegrityFailure(why, reason="rolled_back")
    return row, record.lists.get(name) == _seen(row)


def _objection(record: Marks, name: str, row: SealRow | None) -> str | None:
    known = record.lists.get(name)
    if known is None:
        if record.complete:
            return None
        return (
            "What this server had seen of this database was lost, so the list there may be an old one. Nobody is let in. Was a "
            f"backup put back? {RESEAL}"
        )
    if not is_older(_seen(row), known):
        return None
    revision = row.revision if row is not None else 0
    what = (
        f"older (revision {revision}) than one that this server has seen ({known.revision})"
        if revision != known.revision
        else f"another than the one that this server has seen under the same revision ({revision})"
    )
    return (
        f"The list in the database is {what}. Nobody is let in. Was a backup put back? {RESEAL} If two servers have databases of "
        "the same name, give each a device directory of its own (AMESH['DIR'])."
    )


def _read_fresh(using: str) -> SealRow | None:
    """The seal as it is now, whatever an open transaction sees."""
    connection = connections[using]
    if not connection.in_atomic_block:
        return read_seal(using)
    other = connection.copy()
    try:
        return read_seal_by(other)
    finally:
        other.close()


def remember(using: str, keys: SealKeys, row: SealRow) -> bool:
    """Note that a verified list was seen; False if that has to be tried again.

    Raises:
        AllowListIntegrityFailure, KeyStoreError: as :func:`check`.
    """
    place = _place(using, keys)
    if place is None:
        return True
    lists, name = place
    try:
        before, after = lists.remember(name, Mark(row.revision, row.hmac))
    except (StorageError, AllowListBusy) as error:
        if str(lists.path) not in _warned:
            _warned.add(str(lists.path))
            logger.warning(
                "Which list is the newest can't be noted: %s A process that starts later does not notice if an older list is put "
                "back.",
                error,
            )
        return False
    if name not in before.lists:
        _announce(lists, name, before, after)
    why = _objection(after, name, row)
    if why is not None and after.lists[name].revision == row.revision:
        raise AllowListIntegrityFailure(why, reason="rolled_back")
    return True


def _announce(lists: HighWater, name: str, before: Marks, record: Marks) -> None:
    if record.counter is not None:
        how = "A counter in the TPM tells whether that file was put back."
    else:
        how = "Without a TPM, whoever puts that file back together with the database is not noticed."
    logger.info("From now on %s says which list of %s is the newest. %s", lists.path, name, how)
    others = sorted({*before.lists} - {name})
    if others:
        logger.warning(
            "This server has seen lists in other databases (%s), and sees the one of %s for the first time. If that is a copy of "
            "one of them, devices that were revoked since may be trusted again: look at the list.",
            ", ".join(others),
            name,
        )


def state_of_file(using: str, keys: SealKeys) -> object:
    """What changes when a process of this host notes something; costs no more than a look at the folder."""
    place = _place(using, keys)
    return place[0].stamp() if place is not None else None


def remember_on_commit(using: str, keys: SealKeys, row: SealRow) -> None:
    """Note a change of this process as soon as it is there to stay: a backup that is put back right after it is noticed."""

    def note() -> None:
        try:
            remember(using, keys, row)
        except AllowListIntegrityFailure as error:
            logger.critical("%s", error)
        except AmeshError as error:  # the change itself was done
            logger.error("Which list is the newest could not be noted: %s", error)

    if acting_device() is None:
        transaction.on_commit(note, using=using)


def accept_on_commit(using: str, keys: SealKeys, row: SealRow) -> None:
    """Take the list for the newest one as soon as it is there to stay, whatever was known: a person said so.

    Raises, when that is done:
        StorageError, AllowListBusy, KeyStoreError: the list is in place, and goes on being refused.
    """
    place = _place(using, keys)
    if place is None:
        return
    lists, name = place

    def accept() -> None:
        try:
            lists.accept(name, Mark(row.revision, row.hmac))
        except (StorageError, AllowListBusy) as error:
            if lists.has_counter:  # it would go on being refused
                raise
            logger.warning("Which list is the newest could not be noted: %s", error)

    transaction.on_commit(accept, using=using)


def newest_revision(using: str, keys: SealKeys) -> int:
    """Of the list that this host has seen; 0 where that is not known."""
    place = _place(using, keys)
    if place is None:
        return 0
    try:
        known = place[0].load().lists.get(place[1])
    except AllowListIntegrityFailure:
        return 0
    return known.revision if known is not None else 0


def memory(using: str) -> Memory:
    """What this host remembers of the list in a database.

    Raises:
        KeyStoreError, DirectoryError: the keys, or the TPM, can't be had.
    """
    place = _place(using, seal_keys())
    if place is None:
        return Memory(None, "none", "")
    lists, name = place
    with contextlib.suppress(AllowListIntegrityFailure):
        record = lists.load()
        known = record.lists.get(name)
        if known is None:
            return Memory(None, "none", "")
        return Memory(known.revision, "tpm" if record.counter is not None else "file", str(lists.path))
    return Memory(None, "tpm", str(lists.path))


def reset() -> None:
    """Forget what was said in the log."""
    _warned.clear()
