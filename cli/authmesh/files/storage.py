"""Files of the device directory: private, written atomically, under a lock that other processes honour."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from authmesh.protocol.errors import AllowListBusy, StorageError
from authmesh.protocol.seal import canonical_json

_INTEGER_INDEX = re.compile(r"0|[1-9][0-9]{0,8}").fullmatch
_MAX_SAFE_INTEGER = (1 << 53) - 1
_TEMPORARY = ".amesh-tmp"
LOCK_SECONDS = 10.0


def json_text(value: Any) -> str:
    """JSON as the files have it, byte for byte as the reference would write it: ``JSON.stringify(value, null, 2)``."""
    return _stringify(value, "\n")


def _stringify(value: Any, newline: str) -> str:
    deeper = newline + "  "
    if isinstance(value, Mapping) and value:
        indices = sorted(filter(_INTEGER_INDEX, value), key=int)  # a JavaScript engine enumerates these first
        names = [*indices, *(name for name in value if not _INTEGER_INDEX(name))]
        members = [f"{_stringify(name, '')}: {_stringify(value[name], deeper)}" for name in names]
        return "{" + deeper + f",{deeper}".join(members) + newline + "}"
    if isinstance(value, list | tuple) and value:
        return "[" + deeper + f",{deeper}".join([_stringify(item, deeper) for item in value]) + newline + "]"
    if type(value) is int and abs(value) > _MAX_SAFE_INTEGER:
        return str(value)
    return canonical_json(value).decode()


def expanded(path: Path | str) -> Path:
    """*path* with the home folder in the place of ``~``.

    Raises:
        StorageError: there is no such user; or the user of this process has neither an entry nor ``HOME``, as in many containers.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StorageError(
            f"There is no home folder for {path}. Write the whole path (AUTH_MESH_DIR names the device directory), or set HOME."
        ) from None


def make_private_directory(path: Path) -> None:
    """Make *path* (mode 0700) where it is missing.

    Raises:
        StorageError: it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {path} can't be made ({error.strerror}). Choose another by AUTH_MESH_DIR."
        ) from None


def sync_directory(path: Path) -> None:
    """Bring to the disk what was renamed in a folder.

    Raises:
        OSError: some file systems can't.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace *path* by *text* in one step; whoever reads sees the old file or the new one, also after a crash.

    Raises:
        StorageError: the disk refuses; the old file is as it was and nothing is left over.
    """
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise StorageError(
            f"{path} can't be written ({error.strerror}); the old file is as it was. Make room or check permissions, try again."
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    with contextlib.suppress(OSError):  # the new file is in place; some file systems can't sync a folder
        sync_directory(path.parent)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a device directory; temporary files that a killed process left there are removed.

    Raises:
        AllowListBusy: another process or thread held it for *seconds*.
        StorageError: there is no such folder, or it can't be written to.
    """
    if not folder.is_dir():  # the lock would make it, open to others
        raise StorageError(f"There is no folder {folder}. Make an identity there (init), or set AUTH_MESH_DIR.")
    lock = filelock.FileLock(
        folder / ".lock", mode=0o600, is_singleton=True
    )  # one a path: may be taken again by its thread
    try:
        lock.acquire(timeout=seconds, poll_interval=0.01)
    except filelock.Timeout:
        raise AllowListBusy(f"Another process has held {folder / '.lock'} for {seconds:g} s. Try again.") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "no file locks here"
        raise StorageError(f"{folder} can't be written ({reason}). Make room or check owner and permissions.") from None
    try:
        _remove_left_overs(folder)
        yield
    finally:
        lock.release()


def _remove_left_overs(folder: Path) -> None:
    for place in (folder, folder / "keys"):
        for left_over in place.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                left_over.unlink()


def permission_problems(folder: Path, passphrase_file: Path | None = None) -> list[str]:
    """What others can read or write in a device directory; one sentence with the fix for each. Empty if all is private.

    Args:
        folder: the device directory.
        passphrase_file: where the passphrase is, if not in the folder.
    """
    problems = []
    keys, passphrase = folder / "keys", passphrase_file or folder / ".passphrase"
    for path in (folder, keys, *sorted(folder.glob("*.json")), passphrase, *sorted(keys.glob("*"))):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            wanted = "700" if path.is_dir() else "400" if path == passphrase else "600"
        except OSError:
            continue
        if mode & 0o077:
            problems.append(f"{path} is open to others (mode {mode:03o}). Close it: chmod {wanted} {path}")
    return problems
