"""What this host remembers of the lists in databases: the newest that it has seen, so that an older one is known for what it is."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from authmesh.files.storage import atomic_write, json_text, locked, make_private_directory
from authmesh.keystore.tpm.counter import NoSpace, NotOurs, TpmCounter
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure, StorageError
from authmesh.protocol.seal import canonical_json

logger = logging.getLogger("amesh_django.allow_list")

FILE_NAME: Final = "list_revision.json"
FILE_VERSION: Final = "1"
#: How long a process waits for another one that writes the file.
LOCK_SECONDS: Final = 5.0
#: How often the file is read again, without the lock, where others write it in between.
_ATTEMPTS: Final = 10
RESEAL: Final = "Run manage.py amesh_integrity --reseal: it shows who would be trusted, and asks. Then revoke again what was revoked since."


class Seen(NamedTuple):
    """A list that was seen: its revision, and its seal, which tells two lists of the same revision apart."""

    revision: int
    seal: str


@dataclass(frozen=True, slots=True)
class Record:
    """What the file says.

    Attributes:
        lists: database → the newest list seen there.
        complete: False after an older file was put back or lost: a database that it does not name may have been known before.
        counter: value of the TPM's counter that belongs to it; None where there is none.
        exists: False where there is no file yet, or only that of another identity.
    """

    lists: Mapping[str, Seen] = field(default_factory=dict)
    complete: bool = True
    counter: int | None = None
    exists: bool = True


_NOTHING: Final = Record(exists=False)


class _Damaged(Exception):
    """The file can't be read, or was not written with our key."""


class NewestLists:
    """The record in a device directory: a file under a MAC and, with a TPM, a counter there that says which file is the newest.

    The file is written with the value that the counter will have, then the counter is counted up. So a file with the value of the
    counter is the newest one, and so is one that is ahead by one: something ended the process in between, and the counter is
    brought up. Any other was put back.

    Args:
        folder: the device directory.
        key: 32 secret bytes, for the MAC.
        owner: whose it is; a file of another one counts as none.
        counter: in this machine's TPM; None for an identity whose key is elsewhere.
    """

    def __init__(self, folder: Path, key: bytes, owner: str, counter: TpmCounter | None) -> None:
        self.path = folder / FILE_NAME
        self._folder = folder
        self._key = key
        self._owner = owner
        self._counter = counter

    @property
    def has_counter(self) -> bool:
        """True if a counter in the TPM belongs to the file."""
        return self._counter is not None

    def load(self) -> Record:
        """What was seen so far.

        Raises:
            AllowListIntegrityFailure: the TPM says that this file was put back (``rolled_back``), or that there was one
                (``revision_lost``).
            KeyStoreError: the TPM can't be used.
        """
        try:
            record, is_ahead = self._load()
            if not is_ahead:
                return record
        except AllowListIntegrityFailure:
            pass
        try:  # another process may be between writing the file and counting up
            with self._locked():
                record, _ = self._settled()
        except (StorageError, AllowListBusy):  # nobody can write here, or others do all the time
            record = self._load_unlocked()
        return record

    def _load_unlocked(self) -> Record:
        """The record; again where it was written between a look at the file and one at the counter."""
        for _ in range(_ATTEMPTS):
            before = self.stamp()
            try:
                return self._load()[0]
            except AllowListIntegrityFailure:
                if self.stamp() == before:
                    raise
        return self._load()[0]

    def stamp(self) -> object:
        """What changes when a process of this host notes something; costs no more than a look at the folder."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> tuple[Record, bool]:
        """The record, and whether the counter has yet to be counted up for it."""
        try:
            record = self._read_file()
        except _Damaged as error:
            if self._value() is not None:
                raise self._lost(str(error)) from None
            logger.warning(
                "%s %s. It is begun anew: this server takes the list in the database for the newest one.",
                self.path,
                error,
            )
            return _NOTHING, False
        if self._counter is None:
            if record.counter is not None:  # of another key of the same owner there is none
                raise AllowListIntegrityFailure(
                    f"{self.path} belongs to a counter in the TPM, and identity.json says that this server's key is elsewhere: it was "
                    f"changed. Nobody is let in. Put it back. Otherwise: {RESEAL}",
                    reason="revision_lost",
                )
            return record, False
        value = self._value()
        if not record.exists:
            if value is not None:
                raise self._lost("is missing")
            return record, False
        if value is None:
            if record.counter is not None:
                raise AllowListIntegrityFailure(
                    f"The counter in the TPM that {self.path} names is gone: somebody removed it. Nobody is let in. {RESEAL}",
                    reason="revision_lost",
                )
            return record, False
        if record.counter is None or record.counter not in (value, value + 1):
            raise AllowListIntegrityFailure(
                f"{self.path} is not the newest one, says the counter in the TPM: it was put back, perhaps together with the "
                f"list in the database. Nobody is let in. Was a backup put back? {RESEAL}",
                reason="rolled_back",
            )
        return record, record.counter == value + 1

    def _value(self) -> int | None:
        try:
            return self._counter.read() if self._counter is not None else None
        except NotOurs:
            raise AllowListIntegrityFailure(
                "The counter in the TPM that says which list is the newest has another password: the secret of the seal was "
                f"changed, or another program has put its own there. Nobody is let in. {RESEAL}",
                reason="revision_lost",
            ) from None

    def _lost(self, why: str) -> AllowListIntegrityFailure:
        return AllowListIntegrityFailure(
            f"{self.path} {why}, and the TPM says that there was one: which list is the newest is not known. Nobody is let in. "
            f"{RESEAL}",
            reason="revision_lost",
        )

    def _settled(self) -> tuple[Record, int | None]:
        """The record, and the value of the counter, which is brought up to it. Inside the lock."""
        record, is_ahead = self._load()
        if is_ahead and self._counter is not None and record.counter is not None:
            self._counter.advance_to(record.counter)
        return record, record.counter

    def remember(self, database: str, seen: Seen) -> tuple[Record, Record]:
        """Note that *seen* is in the database, unless a newer one is known; the record as it was and as it is then.

        Raises:
            AllowListIntegrityFailure: as :meth:`load`.
            StorageError: it can't be written here.
            AllowListBusy: another process held the lock too long.
            KeyStoreError: the TPM can't be used.
        """
        with self._locked():
            record, value = self._settled()
            known = record.lists.get(database)
            if known is not None and known.revision >= seen.revision:
                return record, record
            return record, self._write(replace(record, lists={**record.lists, database: seen}), value)

    def accept(self, database: str, seen: Seen) -> Record:
        """Take *seen* for the newest list, whatever was known before: a person said so.

        Raises:
            StorageError, AllowListBusy, KeyStoreError: as :meth:`remember`.
        """
        with self._locked():
            try:
                record, value = self._settled()
            except AllowListIntegrityFailure:
                record = Record(complete=False)  # what it says of other databases may be old
                value = self._counter_anyhow()
            return self._write(replace(record, lists={**record.lists, database: seen}), value)

    def _counter_anyhow(self) -> int | None:
        """One above its value: somebody may keep a record that was written for that one and never counted."""
        try:
            value = self._counter.read() if self._counter is not None else None
            return None if value is None else value + 1
        except NotOurs:
            if self._counter is not None:
                self._counter.remove()
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_directory(self._folder)
        with locked(self._folder, LOCK_SECONDS):
            yield

    def _write(self, record: Record, value: int | None) -> Record:
        is_new = False
        if value is not None:
            value += 1
        elif self._counter is not None:
            try:
                # Whoever is killed between this and the file leaves a counter without one, and a person has to reseal; that the
                # other way round would let anybody begin anew who keeps the first file.
                value, is_new = self._counter.make(), True
            except NoSpace as error:
                logger.warning("%s Until then %s alone tells which list is the newest.", error, self.path)
        record = replace(record, counter=value, exists=True)
        try:
            atomic_write(self.path, self._text(record))
        except StorageError:
            if is_new and self._counter is not None:
                self._counter.remove()
            raise
        if value is not None and self._counter is not None and not is_new:
            self._counter.advance_to(value)
        return record

    def _mac(self, document: Mapping[str, Any]) -> str:
        return hmac.digest(self._key, b"amesh-newest-lists-v1\0" + canonical_json(document), "sha256").hex()

    def _text(self, record: Record) -> str:
        document = {
            "version": FILE_VERSION,
            "owner": self._owner,
            "lists": {name: seen._asdict() for name, seen in sorted(record.lists.items())},
            "complete": record.complete,
            "counter": record.counter,
        }
        return json_text({**document, "hmac": self._mac(document)})

    def _read_file(self) -> Record:
        try:
            text = self.path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return _NOTHING
        except (OSError, UnicodeDecodeError) as error:
            raise _Damaged(f"can't be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
        try:
            document = json.loads(text)
            mac = str(document.pop("hmac"))
            if document["owner"] != self._owner:
                return _NOTHING
            if not hmac.compare_digest(self._mac(document).encode(), mac.encode("utf-8", "replace")):
                raise _Damaged("was changed, or was written with another key")
            lists = {name: Seen(int(seen["revision"]), str(seen["seal"])) for name, seen in document["lists"].items()}
            counter = document["counter"]
            return Record(lists, document["complete"] is True, None if counter is None else int(counter))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _Damaged("is damaged") from None


def is_older(found: Seen | None, known: Seen) -> bool:
    """True if *found* is an older list than *known*, or another one of the same revision: a list put back and changed.

    Args:
        found: None where there is no list.
    """
    if found is None or found.revision != known.revision:
        return known.revision > (found.revision if found is not None else -1)
    return found.seal != known.seal
