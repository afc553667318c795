"""Whose turn it is at a TPM without a resource manager: the processes of a user take turns by two lock files (flock(2))."""

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

#: How long to wait for one's turn, seconds.
PATIENCE: Final = 10.0
#: How long a process may go on before it must line up again, seconds: what another one loads anew takes half a millisecond.
SLICE: Final = 0.02
_POLL: Final = 0.001

_TOKEN_BYTES: Final = 16
_RECORD_BYTES: Final = 1024
#: Stands among the handles while something is being loaded: whoever finds it does not know what is there.
UNKNOWN: Final = 0xFFFFFFFF


class Turn:
    """The right to use a TPM now. It is not kept between two uses; what was loaded is, until another process comes.

    The file of the turn holds who had it last and which handles it left loaded, so that whoever comes next unloads them, also
    where that process was killed. The second file is the queue: whoever waits holds it, and whoever had a slice lines up behind.
    Nothing depends on the files for being right: who shares a TPM without them (another user, other programs) is slower.

    Args:
        tcti: which TPM.

    Raises:
        KeyStoreError: there is no folder for temporary files.
    """

    def __init__(self, tcti: str) -> None:
        name = hashlib.sha256(tcti.encode()).hexdigest()[:16]
        try:
            folder = Path(tempfile.gettempdir())
        except OSError:
            raise KeyStoreError(
                "A TPM without a resource manager needs a folder for temporary files, and none can be written. Set TMPDIR, or use "
                "/dev/tpmrm0."
            ) from None
        self._files = [_File(folder / f".amesh-tpm-{os.geteuid()}-{name}.{kind}") for kind in ("turn", "queue")]
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._since = 0.0
        self._was_last = False
        self._written: tuple[int, ...] = ()
        #: Handles that the one before left loaded, perhaps with UNKNOWN; whoever has the turn unloads them.
        self.left_over: tuple[int, ...] = ()

    def take(self) -> bool:
        """Wait for the turn.

        Returns:
            True if nobody else had it since: what was loaded still is.

        Raises:
            KeyStoreError: it did not come within :data:`PATIENCE`.
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
        data = self._files[0].read(_RECORD_BYTES)
        if data[:_TOKEN_BYTES] == self._token:
            return True
        handles = data[_TOKEN_BYTES:]
        self.left_over = struct.unpack(f"<{len(handles) // 4}I", handles[: len(handles) // 4 * 4])
        self._write(self.left_over)  # this process's to unload now
        return False

    def _write(self, handles: Sequence[int]) -> None:
        self._files[0].write(self._token + struct.pack(f"<{len(handles)}I", *handles))
        self._written = tuple(handles)

    def note_loading(self) -> None:
        """Before something is loaded: if this process is killed before the turn ends, nobody knows what it left."""
        if UNKNOWN not in self._written:
            self._write((UNKNOWN, *self._written))

    def note(self, loaded: Sequence[int]) -> None:
        """Before the turn ends: the handles that stay loaded until another process comes."""
        if self._written != tuple(loaded):
            self._write(loaded)

    def give(self) -> None:
        """Somebody else may have it."""
        self._files[0].unlock()

    def abandon(self) -> None:
        """In a forked child: this is the parent's. A child that kept the file open would keep a killed parent's lock."""
        for file in self._files:
            file.close()


class _File:
    """A lock file, open as long as the process lives. flock belongs to the open file: a forked child opens its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_lock(self) -> bool:
        """Lock it if nobody has it."""
        if self._descriptor is None:
            self._descriptor = self._open()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise KeyStoreError(
                f"The lock {self._path} can't be had ({error.strerror}). Set TMPDIR to a local folder."
            ) from None
        return True

    def lock(self, deadline: float) -> None:
        """Wait for it."""
        if self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0:
            self.close()  # something tidied the folder for temporary files
        while not self.try_lock():
            if time.monotonic() > deadline:
                raise KeyStoreError(
                    f"The TPM has been in use by another process for {PATIENCE:.0f} seconds. Try again; a resource manager "
                    "(/dev/tpmrm0, or tpm2-abrmd) lets several programs use it at a time."
                )
            time.sleep(_POLL)

    def unlock(self) -> None:
        """Let it go."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def read(self, size: int) -> bytes:
        """The beginning of what is in it."""
        return os.pread(self._descriptor, size, 0) if self._descriptor is not None else b""

    def write(self, data: bytes) -> None:
        """Put *data* into it. A disk that is full loses the record, no more: handles are then found when slots run out."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, os.pwrite(self._descriptor, data, 0))

    def close(self) -> None:
        """Close it; the lock goes if no other process has the same open file."""
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
                f"The lock {self._path} can't be opened ({error.strerror}). Remove it if it is not yours, or set TMPDIR."
            ) from None
        if os.fstat(descriptor).st_uid != os.geteuid():
            os.close(descriptor)
            raise KeyStoreError(
                f"The lock {self._path} belongs to another user. Remove it, or set TMPDIR to another folder."
            )
        return descriptor
