"""The newest revocations of this host, kept beside the database: after a backup was restored, they say what to revoke again."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from amesh_django.spelling import manage_py
from authmesh.files.storage import atomic_write, locked, make_private_directory
from authmesh.protocol.errors import AllowListBusy, StorageError

from .keys import SealKeys

logger = logging.getLogger("amesh_django.allow_list")

FILE_NAME: Final = "revocations.json"
FILE_VERSION: Final = "2"
#: Revocations that are kept for each database, the newest ones.
MAX_KEPT: Final = 1000
#: Seconds that a process waits for another one that writes the file.
_LOCK_SECONDS: Final = 5.0


class Revocation(NamedTuple):
    """A revocation that was committed.

    Attributes:
        device_id: the device.
        name: its friendly name.
        at: time, as a text.
        by: who revoked it.
        reason: why.
    """

    device_id: str
    name: str
    at: str
    by: str
    reason: str


class Revocations:
    """The file in the device directory that holds the newest revocations of each database under a MAC.

    Args:
        folder: the device directory.
        keys: the keys that the file may have been written with. The first is used to write.
    """

    def __init__(self, folder: Path, keys: Sequence[SealKeys]) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._keys = keys

    def of(self, database: str) -> list[Revocation]:
        """Return the revocations of a database, the oldest first; no revocation if the file is missing or was changed."""
        return self._read().get(database, [])

    def note(self, database: str, revoked: Iterable[Revocation], trusted: Iterable[str]) -> None:
        """Add revocations, and forget those of devices that were trusted again. A failure is logged.

        Args:
            database: name of the database, as in the file of the high-water marks.
            revoked: the revocations, the oldest first.
            trusted: device IDs.
        """
        revoked = list(revoked)
        gone = {*trusted, *(one.device_id for one in revoked)}
        if not revoked and not any(one.device_id in gone for one in self.of(database)):
            return
        try:
            make_private_directory(self._folder)
            with locked(self._folder, _LOCK_SECONDS):
                found = self._read(is_written=True)
                kept = [one for one in found.get(database, []) if one.device_id not in gone]
                found[database] = [*kept, *revoked][-MAX_KEPT:]
                self._write(found)
        except (StorageError, AllowListBusy) as error:
            logger.warning(
                "Cannot record the newest revocations: %s If an older database is restored, amesh_integrity cannot list them.",
                error.text(manage_py),
            )

    def _read(self, *, is_written: bool = False) -> dict[str, list[Revocation]]:
        """Return the revocations of each database; none if the file is missing or was changed.

        Args:
            is_written: raise StorageError if the file cannot be read now: to write it would lose what it holds.
        """
        try:
            document = json.loads(self._path.read_text("utf-8"))
            mac = str(document.pop("hmac")).encode("utf-8", "replace")
            if not any(hmac.compare_digest(_mac(keys, document).encode(), mac) for keys in self._keys):
                logger.warning("%s was changed, or was written with another key. It is not used.", self._path)
                return {}
            if document["version"] != FILE_VERSION:
                raise ValueError("The file was written by a version before the first release.")
            return {name: [Revocation._make(one) for one in found] for name, found in document["lists"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if is_written and isinstance(error, OSError):
                raise StorageError(f"{self._path} cannot be read ({type(error).__name__}).") from error
            logger.warning("%s cannot be used (%s).", self._path, type(error).__name__)
            return {}

    def _write(self, lists: Mapping[str, list[Revocation]]) -> None:
        document = {"version": FILE_VERSION, "lists": lists}
        atomic_write(self._path, _text({**document, "hmac": _mac(self._keys[0], document)}))


def _mac(keys: SealKeys, document: Mapping[str, Any]) -> str:
    message = f"amesh-revocations-v1\0{keys.owner}\0{_text(document)}".encode()
    return hmac.digest(keys.high_water, message, "sha256").hex()


def _text(document: Mapping[str, Any]) -> str:
    """Return JSON in the form that is made fastest: only this module reads it, and each revocation waits for it."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
