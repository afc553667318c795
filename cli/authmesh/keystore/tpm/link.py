"""The link of a process to a TPM 2.0: one connection, a lock around it, and what to do if a command fails.

The package docstring has the theory of operation.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.errors import AmeshError, KeyStoreError

from .codes import BUSY, FULL, GONE, NO_HIERARCHY, NOT_STARTED, tpm_code
from .connection import Stale, Tpm
from .place import VARIABLE, device_path, has_manager, load_library, open_connection, takes_many
from .turn import PATIENCE, UNKNOWN, Turn

T = TypeVar("T")


class TpmLink:
    """The link of this process to one TPM. Its threads use the connection one after the other; a forked child opens its own.

    Args:
        tcti: the TPM, as returned by :func:`.place.tcti_name`.
    """

    def __init__(self, tcti: str) -> None:
        self.tcti = tcti
        self._lock = ForkSafeLock()
        self._takes_many = takes_many(tcti)
        self._reset(None if has_manager(tcti) else Turn(tcti))

    def _reset(self, turn: Turn | None) -> None:
        self._tpm: Tpm | None = None
        self._saved: dict[Any, Any] = {}
        self._turn = turn
        self._thread = 0
        self._pid = os.getpid()

    def run(self, work: Callable[[Tpm], T]) -> T:
        """Call *work* with the connection, while no other thread uses it, and return its result.

        *work* is called again if a loaded object was unloaded, if the TPM was busy or full, and once if the connection was lost.

        Raises:
            BackendUnavailable: this machine has no TPM that can be used.
            KeyStoreError: the TPM does not respond, or returned an error.
        """
        library = load_library()
        with self._lock:
            self._thread = threading.get_ident()
            try:
                return self._in_turn(library, work)
            finally:
                self._thread = 0

    def _in_turn(self, library: Any, work: Callable[[Tpm], T]) -> T:
        self.leave_parent()
        if self._turn is None:
            return self._tried(library, work)
        is_still_loaded = self._turn.take()
        try:
            if not is_still_loaded and self._tpm is not None:
                self._tpm.forget()
            return self._tried(library, work)
        finally:
            self._end_turn(self._turn)

    def _tried(self, library: Any, work: Callable[[Tpm], T]) -> T:
        tries: _Tries | None = None
        while True:
            try:
                return work(self._open(library))
            except (library.TSS2_Exception, Stale) as error:
                tries = tries or _Tries()
                self._recover(error, tries)
            except AmeshError:
                raise
            except BaseException:  # such as Ctrl-C after an object was loaded and before that was recorded
                self._close()
                raise

    def _recover(self, error: Any, tries: _Tries) -> None:
        """Prepare another try after an error.

        Raises:
            KeyStoreError: another try would not help.
        """
        code = None if isinstance(error, Stale) else tpm_code(error)
        if isinstance(error, Stale) or code in GONE:
            if tries.left("gone", 4) and self._tpm is not None:
                self._tpm.forget()
                return
        elif code in FULL:
            if tries.left("full", 8) and self._tpm is not None:
                if self._turn is not None:
                    self._tpm.unload_everything()
                else:
                    self._tpm.flush()
                if not tries.left("full soon", 2):
                    time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 -- other programs without a turn try it too
                return
        elif code in BUSY:
            if tries.in_time():
                time.sleep(0.02)
                return
        elif code is None:
            self._close()
            if device_path(self.tcti) is not None and not self._takes_many and tries.in_time() and self._is_in_use():
                time.sleep(0.05)
                return
            if tries.left("lost", 1):
                return
        self._close()
        self._give_up(error, code)

    def _give_up(self, error: Any, code: int | None) -> NoReturn:
        hint = "Restart it, then try again."
        if isinstance(error, Stale):
            message = f"The TPM ({self.tcti}) does not behave as expected: {error}."
            hint = "Restart it, or its resource manager."
        elif code is None:
            message = f"The TPM ({self.tcti}) does not respond ({error})."
            hint = f"Start it, or its resource manager. Or correct {VARIABLE}."
        elif code == NOT_STARTED:
            message = f"The TPM ({self.tcti}) was not started."
            hint = "Run tpm2_startup -c, or use its resource manager."
        elif code == NO_HIERARCHY:
            message = f"The owner hierarchy of the TPM ({self.tcti}) is disabled."
            hint = "Enable it in the settings of the firmware."
        elif code in FULL:
            message = f"The TPM ({self.tcti}) has no free slot, because other programs use all of them."
            hint = "End these programs, or use a resource manager."
        else:
            message = f"The TPM ({self.tcti}) returned an error: {error} (0x{int(error.rc):x})."
        raise KeyStoreError(message, hint=hint) from None

    def _is_in_use(self) -> bool:
        try:
            os.close(os.open(device_path(self.tcti) or "", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return True
        return False

    def _open(self, library: Any) -> Tpm:
        if self._tpm is None:
            if _glib.was_forked and self.tcti.partition(":")[0] == "tabrmd":
                raise KeyStoreError(
                    "The TPM cannot be used, because tpm2-abrmd was in use before this process was forked, and D-Bus connections do "
                    "not survive a fork.",
                    hint="Use /dev/tpmrm0, or let the server load the application in its workers (gunicorn without --preload).",
                )
            _glib.is_used = _glib.is_used or self.tcti.partition(":")[0] == "tabrmd"
            context, tcti = open_connection(library, self.tcti)
            before_loading = self._turn.note_loading if self._turn is not None else lambda: None
            self._tpm = Tpm(library, context, tcti, self._saved, before_loading)
        if self._turn is not None and self._turn.left_over:
            if UNKNOWN in self._turn.left_over:
                self._tpm.unload_everything()
            else:
                for handle in self._turn.left_over:
                    self._tpm.unload(handle)
            self._turn.left_over = ()
            self._tpm.changed = True
        return self._tpm

    def _end_turn(self, turn: Turn) -> None:
        if self._tpm is not None and not self._takes_many:
            self._tpm.flush()
            self._close()
        try:
            if self._tpm is None or self._tpm.changed:
                loaded = self._tpm.loaded.values() if self._tpm is not None else ()
                turn.note([*turn.left_over, *(raw for _, raw in loaded)])
            if self._tpm is not None:
                self._tpm.changed = False
        finally:
            turn.give()

    def _close(self) -> None:
        """Close the connection. A resource manager then unloads all objects of the connection."""
        tpm, self._tpm = self._tpm, None
        if tpm is not None:
            if self._turn is not None:
                tpm.flush()
            tpm.close()

    def drop(self, name: Any) -> None:
        """Unload all objects and forget the one with this name. An error is ignored, because it means that none is loaded."""
        self._saved.pop(name, None)
        self.leave()

    def leave(self) -> None:
        """Unload all objects and close the connection. The next use opens a new one."""
        if self._pid == os.getpid() and self._tpm is not None:
            with contextlib.suppress(AmeshError):
                self.run(lambda tpm: tpm.flush())
            with self._lock:
                self._close()

    def rest(self) -> bool:
        """Before a fork, wait until no command is running, and prevent new ones. Return False if that is not possible.

        A child inherits an open connection. A TPM that accepts one connection at a time would wait for it after the parent has
        closed it.
        """
        if self._thread == threading.get_ident():  # a signal handler forks
            return False
        return self._lock.acquire(PATIENCE)

    def resume(self) -> None:
        """Allow commands again, in the parent after a fork."""
        self._lock.release()

    def leave_parent(self) -> None:
        """Give up the connection in a forked child. Using or closing it there would break the connection of the parent."""
        if self._pid != os.getpid():
            _abandoned.append(self._tpm)
            turn = self._turn
            if turn is not None:
                turn.abandon()
                turn = Turn(self.tcti)
            self._reset(turn)


class _Tries:
    """The tries of one call, counted by reason."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + PATIENCE
        self._counts: dict[str, int] = {}

    def left(self, what: str, limit: int) -> bool:
        """Count one more try. Return False if there were already *limit*."""
        self._counts[what] = self._counts.get(what, 0) + 1
        return self._counts[what] <= limit

    def in_time(self) -> bool:
        """Return True if there is time for another try."""
        return time.monotonic() < self._deadline


_links: dict[str, TpmLink] = {}
_links_lock = ForkSafeLock()
#: Connections of parent processes, kept so that garbage collection never closes them in this process.
_abandoned: list[Any] = []
#: Links whose commands are prevented while this thread forks.
_resting = threading.local()


class _Glib:
    """State of GLib, which connects to tpm2-abrmd. Its threads do not exist in a forked child."""

    is_used = False
    was_forked = False


_glib = _Glib()


def link_to(tcti: str) -> TpmLink:
    """Return the link of this process to a TPM. There is only one for each TPM."""
    found = _links.get(tcti)
    if found is None:
        with _links_lock:
            found = _links.setdefault(tcti, TpmLink(tcti))
    return found


def _before_fork() -> None:
    _resting.links = [link for link in list(_links.values()) if link.rest()]


def _in_parent() -> None:
    for link in _resting.links:
        link.resume()


def _in_child() -> None:  # the locks are new here
    _glib.was_forked = _glib.was_forked or _glib.is_used
    for link in _links.values():
        link.leave_parent()


def _at_exit() -> None:
    for link in _links.values():
        link.leave()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
atexit.register(_at_exit)
