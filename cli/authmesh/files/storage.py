"""Files of the device directory: private, written atomically, under a lock that other processes respect."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from authmesh.protocol.errors import AllowListBusy, Run, StorageError

_TEMPORARY = ".amesh-tmp"
LOCK_SECONDS = 10.0


def json_text(value: Any) -> str:
    """Return *value* as JSON with the layout of the reference: indented, and not escaped if it can be written as UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes its JSON escape


def expanded(path: Path | str) -> Path:
    """Return *path* with ``~`` replaced by the home folder.

    Raises:
        StorageError: the named user does not exist, or the user of this process has neither an entry in the user database nor
            ``HOME``, as in many containers.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StorageError(
            f"The path {path} cannot be resolved because there is no home folder.",
            hint="Use an absolute path (AMESH_DIR or AUTH_MESH_DIR names the device directory), or set HOME.",
        ) from None


def make_private_directory(path: Path) -> None:
    """Create *path* with mode 0700 if it is missing.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {path} cannot be created ({error.strerror}).",
            hint="Check the path and its permissions, or use another device directory (AMESH_DIR or AUTH_MESH_DIR).",
        ) from None


def sync_directory(path: Path) -> None:
    """Write renames inside a folder to the disk.

    Raises:
        OSError: the file system does not support it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _left(path: Path) -> str:
    return "The old file is unchanged." if os.path.lexists(path) else "The file was not created."


def atomic_write(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace the contents of *path* in one step. Readers see either the old file or the new one, even after a crash.

    Raises:
        StorageError: writing failed; the old file is unchanged and no temporary file remains.
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
            f"{path} cannot be written ({error.strerror}). {_left(path)}",
            hint="Free disk space or check the permissions, then try again.",
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    with contextlib.suppress(OSError):  # the new file is in place; some file systems cannot sync a folder
        sync_directory(path.parent)


@contextlib.contextmanager
def locked(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a device directory. Removes temporary files that a killed process left behind.

    Raises:
        AllowListBusy: another process or thread held the lock for *seconds*.
        StorageError: the folder does not exist or cannot be written.
    """
    if not folder.is_dir():  # filelock would create it, open to other users
        raise StorageError(
            f"There is no folder {folder}.",
            hint=(
                "To make an identity in it, run ",
                Run("init", "--name NAME"),
                ". Or set AMESH_DIR or AUTH_MESH_DIR.",
            ),
        )
    # A singleton: the thread that holds the lock of a path may take it again.
    lock = filelock.FileLock(folder / ".lock", mode=0o600, is_singleton=True)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.01)
    except filelock.Timeout:
        held = f"has held {folder / '.lock'} for {seconds:g} s" if seconds else f"holds {folder / '.lock'}"
        raise AllowListBusy(f"Another process {held}. Nothing was changed.", hint="Try again.") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "the file system has no file locks"
        raise StorageError(
            f"{folder} cannot be written ({reason}). Nothing was changed.",
            hint="Free disk space, or check the owner and permissions.",
        ) from None
    try:
        _remove_temporary_files(folder)
        yield
    finally:
        lock.release()


def _remove_temporary_files(folder: Path) -> None:
    for place in (folder, folder / "keys"):
        for temporary in place.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                temporary.unlink()


class PermissionProblem(NamedTuple):
    """A file or folder that other users can read or write.

    Attributes:
        message: the path and its mode.
        hint: the shell command that makes it private.
    """

    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


def permission_problem(path: Path, private_mode: int) -> PermissionProblem | None:
    """Return the problem if other users have access to *path*, or None.

    Args:
        path: a file or folder; one that cannot be examined has no problem.
        private_mode: the mode that it should have.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if not mode & 0o077:
        return None
    return PermissionProblem(
        f"{path} is accessible to other users (mode {mode:03o}).",
        f"Make it private: chmod {private_mode:03o} {path}",
    )


def permission_problems(folder: Path, passphrase_file: Path | None = None) -> list[PermissionProblem]:
    """Return everything in a device directory that other users can read or write.

    Args:
        folder: the device directory.
        passphrase_file: the passphrase file, if it is not in the folder.
    """
    keys, passphrase = folder / "keys", passphrase_file or folder / ".passphrase"
    problems = []
    for path in (folder, keys, *sorted(folder.glob("*.json")), passphrase, *sorted(keys.glob("*"))):
        private_mode = 0o700 if os.path.isdir(path) else 0o400 if path == passphrase else 0o600
        problem = permission_problem(path, private_mode)
        if problem is not None:
            problems.append(problem)
    return problems
