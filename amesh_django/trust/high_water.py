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

from django.utils.translation import gettext as _

from authmesh.files.storage import atomic_write, json_text, locked, make_private_directory
from authmesh.keystore.tpm.counter import NoSpace, NotOurs, TpmCounter
from authmesh.protocol.errors import AllowListBusy, AllowListIntegrityFailure, Hint, Run, StorageError
from authmesh.protocol.seal import canonical_json

logger = logging.getLogger("amesh_django.allow_list")

FILE_NAME: Final = "list_revision.json"
FILE_VERSION: Final = "1"
#: Seconds that a process waits for another one that writes the file.
LOCK_SECONDS: Final = 5.0
#: How often the file is read again without the lock if other processes write it meanwhile.
_MAX_ATTEMPTS: Final = 10


def reseal_hint(first: str = "", last: str = "") -> Hint:
    """Return the hint for a list that is not known to be the newest.

    Args:
        first: a sentence about what to do if the list must not be accepted.
        last: a sentence at the end.
    """
    rejected = _("All requests are rejected.")
    accept = _("To accept the list in the database, for example after a backup was restored, run")
    then = _(
        ". The command shows which devices would be trusted, and asks. Then revoke again the devices that were revoked since."
    )
    before, after = " ".join(filter(None, (rejected, first, accept))), " ".join(filter(None, (then, last)))
    return (f"{before} ", Run("integrity", "--reseal"), after)


def own_directory() -> str:
    """Return the sentence for servers whose lists may have been mixed up."""
    return _(
        "If two servers have databases of the same name, give each server its own device directory (AMESH['DIR'])."
    )


def other_list() -> AllowListIntegrityFailure:
    """Return the error for a list that is not a later state of the one that is known."""
    return AllowListIntegrityFailure(
        _(
            "The list in the database is another one than this server has seen in it: the same key sealed it, but in another database, "
            "or the list was begun again."
        ),
        hint=reseal_hint(_("Restore the right database."), own_directory()),
        reason="other_epoch",
    )


class Mark(NamedTuple):
    """The newest list that was seen in a database.

    Attributes:
        revision: its revision.
        seal: its HMAC, which tells two lists of one revision apart.
        epoch: its random name, which tells it apart from a list that the same key sealed in another database; empty in a list of
            version 0.1.
        continues: epochs of the lists that a person resealed as this one, separated by spaces.
    """

    revision: int
    seal: str
    epoch: str = ""
    continues: str = ""


def is_older(found: Mark | None, known: Mark) -> bool:
    """Return True if *found* is an older list than *known*, or another list of the same revision (restored, then changed).

    Args:
        found: the list in the database; None if there is none. That is older than any list with a seal, even of revision 0,
            because a seal row is never deleted.
    """
    if found is None or found.revision < known.revision:
        return True
    return found.revision == known.revision and found.seal != known.seal


def is_other(found: Mark | None, known: Mark) -> bool:
    """Return True if *found* is neither a later nor an older state of *known*, but a list that was begun on its own.

    A mark of version 0.1 has no epoch, and takes over that of the list that is found next.
    """
    if found is None or not known.epoch or known.epoch == found.epoch:
        return False
    if found.revision < known.revision and found.epoch in known.continues.split():
        return False
    return known.epoch not in found.continues.split()


@dataclass(frozen=True, slots=True)
class Marks:
    """The content of the file.

    Attributes:
        lists: database → the newest list that was seen in it.
        complete: False after an older file was restored, or the file was lost: a database that it does not name may have been
            known before.
        counter: value of the counter in the TPM that belongs to the file; None if there is no counter.
        exists: False if there is no file, or only one of another owner.
    """

    lists: Mapping[str, Mark] = field(default_factory=dict)
    complete: bool = True
    counter: int | None = None
    exists: bool = True


_NOTHING: Final = Marks(exists=False)


class _Unusable(Exception):
    """The file cannot be read, or was not written with our key. The argument says which, in a few words."""


class HighWater:
    """The file in the device directory that holds the marks under a MAC and, with a TPM, the counter that proves it the newest.

    A writer first writes the file with the value that the counter will have, then increments the counter. So a file with the value
    of the counter is the newest one. So is a file that is ahead by one: its writer was killed in between, and the counter is
    incremented now. Any other file is an old copy that was restored.

    Args:
        folder: the device directory.
        key: 32 secret bytes, for the MAC.
        owner: owner of the marks; the file of another owner is ignored.
        counter: counter in this machine's TPM; None if the key of the identity is elsewhere.
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

    def stamp(self) -> object:
        """Return a value that changes whenever a process of this host writes the file. Costs one ``stat``."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    # --- reading ---

    def load(self) -> Marks:
        """Return the marks.

        Raises:
            AllowListIntegrityFailure: the TPM proves that this file is an old copy (``rolled_back``), or that there was another one
                (``revision_lost``).
            KeyStoreError: the TPM cannot be used.
        """
        try:
            marks, is_ahead = self._load()
            if not is_ahead:
                return marks
        except AllowListIntegrityFailure:
            pass
        try:  # another process may be between writing the file and incrementing the counter
            with self._locked(0):
                return self._settled()[0]
        except (StorageError, AllowListBusy):  # this process may not write there, or others do all the time
            return self._load_unlocked()

    def _load_unlocked(self) -> Marks:
        """Return the marks, reading again whenever the file was written between reading it and reading the counter."""
        for _attempt in range(_MAX_ATTEMPTS):
            before = self.stamp()
            try:
                return self._load()[0]
            except AllowListIntegrityFailure:
                if self.stamp() == before:
                    raise
        return self._load()[0]

    def _load(self) -> tuple[Marks, bool]:
        """Return the marks, and True if the counter must still be incremented for them."""
        try:
            marks = self._read_file()
        except _Unusable as error:
            if self._counter_value() is not None:
                raise self._lost(str(error)) from None
            logger.warning(
                "%s %s. A new one will be written: this server accepts the list in the database as the newest.",
                self.path,
                error,
            )
            return _NOTHING, False
        if self._counter is None:
            if marks.counter is not None:  # another key of the same owner has no counter
                raise AllowListIntegrityFailure(
                    _(
                        "%(path)s belongs to a counter in the TPM, but according to identity.json the key of this server is not in the "
                        "TPM: identity.json was changed."
                    )
                    % {"path": self.path},
                    hint=reseal_hint(_("Restore identity.json.")),
                    reason="revision_lost",
                )
            return marks, False
        value = self._counter_value()
        if not marks.exists:
            if value is not None:
                raise self._lost(_("is missing"))
            return marks, False
        if value is None:
            if marks.counter is not None:
                raise AllowListIntegrityFailure(
                    _("The counter in the TPM that belongs to %(path)s was removed, so the newest list is not known.")
                    % {"path": self.path},
                    hint=reseal_hint(),
                    reason="revision_lost",
                )
            return marks, False
        if marks.counter is None or marks.counter not in (value, value + 1):
            raise AllowListIntegrityFailure(
                _(
                    "%(path)s is older than the counter in the TPM: an old copy of the file was restored, perhaps together with the "
                    "list in the database."
                )
                % {"path": self.path},
                hint=reseal_hint(),
                reason="rolled_back",
            )
        return marks, marks.counter == value + 1

    def _counter_value(self) -> int | None:
        try:
            return self._counter.read() if self._counter is not None else None
        except NotOurs:
            raise AllowListIntegrityFailure(
                _(
                    "The counter in the TPM that proves which list is the newest has another password: the secret of the seal was "
                    "changed, or another program made the counter."
                ),
                hint=reseal_hint(),
                reason="revision_lost",
            ) from None

    def _lost(self, why: str) -> AllowListIntegrityFailure:
        return AllowListIntegrityFailure(
            _("The newest list is not known: according to the TPM there was a high-water file, but %(path)s %(why)s.")
            % {"path": self.path, "why": why},
            hint=reseal_hint(),
            reason="revision_lost",
        )

    def _read_file(self) -> Marks:
        try:
            text = self.path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return _NOTHING
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or _("not UTF-8 text")
            raise _Unusable(_("cannot be read (%(why)s)") % {"why": why}) from None
        try:
            document = json.loads(text)
            mac = str(document.pop("hmac"))
            if document["owner"] != self._owner:
                return _NOTHING
            if not hmac.compare_digest(self._mac(document).encode(), mac.encode("utf-8", "replace")):
                raise _Unusable(_("was changed, or was written with another key"))
            lists = {name: _mark(**mark) for name, mark in document["lists"].items()}
            counter = document["counter"]
            return Marks(lists, document["complete"] is True, None if counter is None else int(counter))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _Unusable(_("is damaged")) from None

    # --- writing ---

    def remember(self, database: str, mark: Mark, seconds: float = LOCK_SECONDS) -> tuple[Marks, Marks]:
        """Store the mark of a database, unless the same or a newer one is stored. Return the marks before and after.

        Args:
            database: its name.
            mark: the newest list that was seen in it.
            seconds: how long to wait for another process that writes the file.

        Raises:
            AllowListIntegrityFailure: as for :meth:`load`.
            StorageError: the file cannot be written.
            AllowListBusy: another process held the lock too long.
            KeyStoreError: the TPM cannot be used.
        """
        with self._locked(seconds):
            marks, value = self._settled()
            known = marks.lists.get(database)
            if known is not None and (known.revision >= mark.revision or is_other(mark, known)):
                return marks, marks
            return marks, self._write(replace(marks, lists={**marks.lists, database: mark}), value)

    def accept(self, database: str, mark: Mark) -> Marks:
        """Store the mark of a database, whatever was stored before, because a person accepted that list.

        Raises:
            StorageError, AllowListBusy, KeyStoreError: as for :meth:`remember`.
        """
        with self._locked():
            try:
                marks, value = self._settled()
            except AllowListIntegrityFailure:
                marks = Marks(complete=False)  # the marks of other databases may be old
                value = self._counter_after_loss()
            return self._write(replace(marks, lists={**marks.lists, database: mark}), value)

    @contextlib.contextmanager
    def _locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        make_private_directory(self._folder)
        with locked(self._folder, seconds):
            yield

    def _settled(self) -> tuple[Marks, int | None]:
        """Return the marks and the value of the counter, which is incremented if it is behind. Call it inside the lock."""
        marks, is_ahead = self._load()
        if is_ahead and self._counter is not None and marks.counter is not None:
            self._counter.advance_to(marks.counter)
        return marks, marks.counter

    def _counter_after_loss(self) -> int | None:
        """Return the value of the counter plus one: somebody may have kept a file with that value that was never counted."""
        try:
            value = self._counter.read() if self._counter is not None else None
            return None if value is None else value + 1
        except NotOurs:
            if self._counter is not None:
                self._counter.remove()
            return None

    def _write(self, marks: Marks, value: int | None) -> Marks:
        """Write the file with the next value of the counter, then increment the counter.

        Args:
            value: what the counter is at, or will be at; None makes a counter if the TPM has room for one.
        """
        is_new = False
        if value is not None:
            value += 1
        elif self._counter is not None:
            try:
                # A process that is killed between this line and the file leaves a counter without a file, and a person must
                # reseal. In the other order, anyone who keeps a copy of the first file could start again with it.
                value, is_new = self._counter.make(), True
            except NoSpace as error:
                logger.warning("%s Until then, only %s records which list is the newest.", error, self.path)
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


def _mark(revision: Any, seal: Any, epoch: Any = "", continues: Any = "") -> Mark:
    """Return a mark as the file has it. Version 0.1 wrote no epoch."""
    return Mark(int(revision), str(seal), str(epoch), str(continues))
