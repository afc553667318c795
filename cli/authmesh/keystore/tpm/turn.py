"""Turns at a TPM without a resource manager: the processes of a user take turns by means of two lock files (flock(2)).

The package docstring says why turns are needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from authmesh.protocol.errors import KeyStoreError

#: Seconds that a process waits for its turn.
PATIENCE: Final = 10.0
#: Seconds that a process may keep taking turns before it must queue again. Loading a saved key takes half a millisecond.
SLICE: Final = 0.02
_POLL: Final = 0.001

_TOKEN_BYTES: Final = 16
_FILE_BYTES: Final = 1024
#: Recorded among the handles while an object is being loaded. If it is found later, the loaded handles are unknown.
UNKNOWN: Final = 0xFFFFFFFF


class Turn:
    """The right to use a TPM at the moment. A process keeps its loaded objects after a turn until another process takes one.

    The file of the turn has the token of the process that had the last turn, and the handles that it left loaded, so that the next
    process can unload them even if that process was killed. The second file is the queue: a waiting process holds its lock, and a
    process that has used its slice queues behind it. The files only make turns fast. A program that shares the TPM without them (of
    another user, or another program) may unload the objects of this one, which loads them again.

    Args:
        tcti: the TPM, as returned by :func:`.place.tcti_name`.

    Raises:
        KeyStoreError: there is no folder for temporary files.
    """

    def __init__(self, tcti: str) -> None:
        name = hashlib.sha256(tcti.encode()).hexdigest()[:16]
        try:
            folder = Path(tempfile.gettempdir())
        except OSError:
            raise KeyStoreError(
                "A TPM without a resource manager needs a folder for temporary files, and none can be written.",
                hint="Set TMPDIR, or use /dev/tpmrm0.",
            ) from None
        self._files = [_File(folder / f".amesh-tpm-{os.geteuid()}-{name}.{kind}") for kind in ("turn", "queue")]
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._since = 0.0
        self._was_last = False
        self._written: tuple[int, ...] = ()
        #: Handles that the previous process left loaded, possibly with UNKNOWN. The process with the turn unloads them.
        self.left_over: tuple[int, ...] = ()

    def take(self) -> bool:
        """Wait for the turn.

        Returns:
            True if no other process had a turn in the meantime, so that all objects are still loaded.

        Raises:
            KeyStoreError: the turn did not come within :data:`PATIENCE`.
        """
        turn, queue = self._files
        if self._was_last and time.monotonic() - self._since < SLICE and turn.try_lock():
            if turn.read(_TOKEN_BYTES) == self._token:
                return True
        else:
            deadline = time.monotonic() + PATIENCE
            queue.lock(deadline)
            try:
                turn.lock(deadline)
            finally:
                queue.unlock()
            self._since = time.monotonic()
        try:
            self._was_last = self._read()
        except BaseException:
            turn.unlock()
            raise
        return self._was_last

    def _read(self) -> bool:
        data = self._files[0].read(_FILE_BYTES)
        if data[:_TOKEN_BYTES] == self._token:
            return True
        handles = data[_TOKEN_BYTES:]
        self.left_over = struct.unpack(f"<{len(handles) // 4}I", handles[: len(handles) // 4 * 4])
        self._write(self.left_over)  # this process must unload them now
        return False

    def _write(self, handles: Sequence[int]) -> None:
        self._files[0].write(self._token + struct.pack(f"<{len(handles)}I", *handles))
        self._written = tuple(handles)

    def note_loading(self) -> None:
        """Record that an object is about to be loaded, in case this process is killed before the end of its turn."""
        if UNKNOWN not in self._written:
            self._write((UNKNOWN, *self._written))

    def note(self, loaded: Sequence[int]) -> None:
        """Record the handles that stay loaded after this turn."""
        if self._written != tuple(loaded):
            self._write(loaded)

    def give(self) -> None:
        """End the turn."""
        self._files[0].unlock()

    def abandon(self) -> None:
        """Close the files in a forked child, because the turn belongs to the parent.

        A child with open files would keep the lock of a parent that was killed.
        """
        for file in self._files:
            file.close()


class _File:
    """A lock file that stays open while the process lives. An flock belongs to the open file, so a forked child opens its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_lock(self) -> bool:
        """Lock the file. Return False if another process holds the lock."""
        if self._descriptor is None:
            self._descriptor = self._open()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise KeyStoreError(
                f"The lock file {self._path} cannot be locked ({error.strerror}).", hint="Set TMPDIR to a local folder."
            ) from None
        return True

    def lock(self, deadline: float) -> None:
        """Lock the file, waiting until *deadline* (monotonic time).

        Raises:
            KeyStoreError: another process held the lock until then.
        """
        if self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0:
            self.close()  # the file was deleted, for example by a clean-up of the temporary folder
        while not self.try_lock():
            if time.monotonic() > deadline:
                raise KeyStoreError(
                    f"The TPM has been in use by another process for {PATIENCE:.0f} seconds.",
                    hint="Try again. With a resource manager (/dev/tpmrm0, or tpm2-abrmd), several programs can use it.",
                )
            time.sleep(_POLL)

    def unlock(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def read(self, size: int) -> bytes:
        """Return the first *size* bytes of the file."""
        return os.pread(self._descriptor, size, 0) if self._descriptor is not None else b""

    def write(self, data: bytes) -> None:
        """Replace the contents of the file.

        If the disk is full, only the record is lost. The loaded handles are then found when the TPM runs out of slots.
        """
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, os.pwrite(self._descriptor, data, 0))

    def close(self) -> None:
        """Close the file. That releases the lock unless another process shares the open file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise KeyStoreError(
                f"The lock file {self._path} cannot be opened ({error.strerror}).",
                hint="Remove it if it belongs to another user, or set TMPDIR.",
            ) from None
        if os.fstat(descriptor).st_uid != os.geteuid():
            os.close(descriptor)
            raise KeyStoreError(
                f"The lock file {self._path} belongs to another user.",
                hint="Remove it, or set TMPDIR to another folder.",
            )
        return descriptor
