"""The high-water marks of this host: the newest allow list that it has seen in each database. An older list is thus detected."""

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
#: Seconds that a process waits for another one that writes the file.
LOCK_SECONDS: Final = 5.0
#: Times that the file is read without the lock while other processes write it.
_ATTEMPTS: Final = 10
#: Hint of the errors that a person can resolve by accepting the list.
RESEAL: Final = (
    "To accept the list in the database, for example after a backup was restored, run manage.py amesh_integrity --reseal. It shows which "
    "devices would be trusted, and asks. Then revoke again the devices that were revoked since."
)


class Mark(NamedTuple):
    """A list that was seen: its revision, and its seal, which distinguishes two lists with the same revision."""

    revision: int
    seal: str


@dataclass(frozen=True, slots=True)
class Marks:
    """The contents of the file.

    Attributes:
        lists: database → the newest list that was seen there.
        complete: False after an older file was restored, or the file was lost. A database that is not in *lists* may then have been
            seen before.
        counter: value of the TPM counter that belongs to the file; None if there is no counter.
        exists: False if there is no file, or only the file of another identity.
    """

    lists: Mapping[str, Mark] = field(default_factory=dict)
    complete: bool = True
    counter: int | None = None
    exists: bool = True


_NOTHING: Final = Marks(exists=False)


class _Damaged(Exception):
    """The file can't be read, or was not written with this key. The text is the end of a sentence."""


class HighWater:
    """The marks in a device directory: a file under a MAC and, with a TPM, a counter that identifies the newest file.

    The file is written with the value that the counter will have, then the counter is increased. So the newest file has the value of
    the counter, or a value that is greater by one if the process was interrupted in between; the counter is then increased. Any other
    file is an old copy that was restored.

    Args:
        folder: the device directory.
        key: 32 secret bytes, for the MAC.
        owner: name of the owner. The file of another owner is treated as no file.
        counter: the counter in the TPM of this machine; None if the key of the identity is not in a TPM.
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

    def load(self) -> Marks:
        """Return the marks.

        Raises:
            AllowListIntegrityFailure: according to the TPM, the file is an old copy (``rolled_back``) or was lost
                (``revision_lost``).
            KeyStoreError: the TPM can't be used.
        """
        try:
            marks, is_ahead = self._load()
            if not is_ahead:
                return marks
        except AllowListIntegrityFailure:
            pass
        try:  # another process may be between writing the file and increasing the counter
            with self._locked():
                marks, _ = self._settled()
        except (StorageError, AllowListBusy):  # the folder can't be written, or other processes write all the time
            marks = self._load_unlocked()
        return marks

    def _load_unlocked(self) -> Marks:
        """Return the marks. Read again if the file was written between reading it and reading the counter."""
        for _ in range(_ATTEMPTS):
            before = self.stamp()
            try:
                return self._load()[0]
            except AllowListIntegrityFailure:
                if self.stamp() == before:
                    raise
        return self._load()[0]

    def stamp(self) -> object:
        """Return a value that changes when a process of this host writes the file. It costs one ``stat``."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> tuple[Marks, bool]:
        """Return the marks, and True if the counter must still be increased for them."""
        try:
            marks = self._read_file()
        except _Damaged as error:
            if self._value() is not None:
                raise self._lost(str(error)) from None
            logger.warning(
                "%s %s. A new one will be written: this server accepts the list in the database as the newest.",
                self.path,
                error,
            )
            return _NOTHING, False
        if self._counter is None:
            if marks.counter is not None:  # the owner is the same, and a key outside a TPM has no counter
                raise AllowListIntegrityFailure(
                    f"{self.path} belongs to a counter in the TPM, but according to identity.json the key of this server is not in "
                    "a TPM. identity.json was changed. All signed requests are rejected.",
                    hint=f"Restore identity.json. {RESEAL}",
                    reason="revision_lost",
                )
            return marks, False
        value = self._value()
        if not marks.exists:
            if value is not None:
                raise self._lost("is missing")
            return marks, False
        if value is None:
            if marks.counter is not None:
                raise AllowListIntegrityFailure(
                    f"The counter in the TPM that {self.path} names was removed. All signed requests are rejected.",
                    hint=RESEAL,
                    reason="revision_lost",
                )
            return marks, False
        if marks.counter is None or marks.counter not in (value, value + 1):
            raise AllowListIntegrityFailure(
                f"{self.path} is older than the TPM counter: an old copy was restored, perhaps together with the list in the "
                "database. All signed requests are rejected.",
                hint=RESEAL,
                reason="rolled_back",
            )
        return marks, marks.counter == value + 1

    def _value(self) -> int | None:
        try:
            return self._counter.read() if self._counter is not None else None
        except NotOurs:
            raise AllowListIntegrityFailure(
                "The counter in the TPM that identifies the newest list has another password: the secret of the seal was changed, or "
                "another program has replaced the counter. All signed requests are rejected.",
                hint=RESEAL,
                reason="revision_lost",
            ) from None

    def _lost(self, why: str) -> AllowListIntegrityFailure:
        return AllowListIntegrityFailure(
            f"{self.path} {why}, although the TPM has a counter for it, so the newest list is not known. All signed requests are "
            "rejected.",
            hint=RESEAL,
            reason="revision_lost",
        )

    def _settled(self) -> tuple[Marks, int | None]:
        """Return the marks and the value of the counter, after increasing it if that is due. Called inside the lock."""
        marks, is_ahead = self._load()
        if is_ahead and self._counter is not None and marks.counter is not None:
            self._counter.advance_to(marks.counter)
        return marks, marks.counter

    def remember(self, database: str, mark: Mark) -> tuple[Marks, Marks]:
        """Set the mark of a database unless a newer list is known. Return the marks before and after that.

        Raises:
            AllowListIntegrityFailure: as for :meth:`load`.
            StorageError: the folder can't be written.
            AllowListBusy: another process held the lock for too long.
            KeyStoreError: the TPM can't be used.
        """
        with self._locked():
            marks, value = self._settled()
            known = marks.lists.get(database)
            if known is not None and known.revision >= mark.revision:
                return marks, marks
            return marks, self._write(replace(marks, lists={**marks.lists, database: mark}), value)

    def accept(self, database: str, mark: Mark) -> Marks:
        """Set the mark of a database even if a newer list is known, because a person has accepted the list.

        Raises:
            StorageError, AllowListBusy, KeyStoreError: as for :meth:`remember`.
        """
        with self._locked():
            try:
                marks, value = self._settled()
            except AllowListIntegrityFailure:
                marks = Marks(complete=False)  # the marks of other databases may be old
                value = self._next_counter()
            return self._write(replace(marks, lists={**marks.lists, database: mark}), value)

    def _next_counter(self) -> int | None:
        """Return the value of the counter plus one. A file with that value may exist that was written and never counted."""
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

    def _write(self, marks: Marks, value: int | None) -> Marks:
        is_new = False
        if value is not None:
            value += 1
        elif self._counter is not None:
            try:
                # A process that is killed between this line and the file leaves a counter without a file, and a person must reseal.
                # In the other order, anyone who keeps the first file could start from it again.
                value, is_new = self._counter.make(), True
            except NoSpace as error:
                logger.warning("%s Until then, only %s identifies the newest list.", error, self.path)
        marks = replace(marks, counter=value, exists=True)
        try:
            atomic_write(self.path, self._text(marks))
        except StorageError:
            if is_new and self._counter is not None:
                self._counter.remove()
            raise
        if value is not None and self._counter is not None and not is_new:
            self._counter.advance_to(value)
        return marks

    def _mac(self, document: Mapping[str, Any]) -> str:
        return hmac.digest(self._key, b"amesh-newest-lists-v1\0" + canonical_json(document), "sha256").hex()

    def _text(self, marks: Marks) -> str:
        document = {
            "version": FILE_VERSION,
            "owner": self._owner,
            "lists": {name: mark._asdict() for name, mark in sorted(marks.lists.items())},
            "complete": marks.complete,
            "counter": marks.counter,
        }
        return json_text({**document, "hmac": self._mac(document)})

    def _read_file(self) -> Marks:
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
            lists = {name: Mark(int(mark["revision"]), str(mark["seal"])) for name, mark in document["lists"].items()}
            counter = document["counter"]
            return Marks(lists, document["complete"] is True, None if counter is None else int(counter))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _Damaged("is damaged") from None


def is_older(found: Mark | None, known: Mark) -> bool:
    """Return True if *found* is older than *known*, or a different list with the same revision: a restored list with changes.

    Args:
        found: the list in the database; None if there is none.
        known: the high-water mark.
    """
    if found is None or found.revision != known.revision:
        return known.revision > (found.revision if found is not None else -1)
    return found.seal != known.seal
