"""A process's way to a TPM 2.0 (TCG TPM 2.0 Library, Parts 1 and 3; TSS 2.0 Enhanced System API): one connection, locked.

With a resource manager every connection has slots of its own, and what is loaded stays loaded. Without one all programs share
three slots: there a process has the TPM for a turn (:mod:`.tpm_turn`), and what it loaded makes room for whoever comes next.
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


class Link:
    """This process's way to one TPM. Threads take turns; a forked child opens its own.

    Args:
        tcti: as :func:`.tpm_place.tcti_name`.
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
        """Do *work* with the connection, alone; again where what was loaded is gone, once more where the connection was lost.

        Raises:
            BackendUnavailable: there is no TPM to be used here; a reason without a capital letter.
            KeyStoreError: the TPM does not answer, or refuses; the sentence says what to do.
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
        is_ours_still = self._turn.take()
        try:
            if not is_ours_still and self._tpm is not None:
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
                self._mend(error, tries)
            except AmeshError:
                raise
            except BaseException:  # such as Ctrl-C between loading and noting what was loaded
                self._close()
                raise

    def _mend(self, error: Any, tries: _Tries) -> None:
        """Whatever allows another try.

        Raises:
            KeyStoreError: nothing does.
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
                    time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 -- others without a turn are at it as well
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
        if isinstance(error, Stale):
            text = f"The TPM ({self.tcti}) does not do what it is told: {error}. Restart it, or its resource manager."
        elif code is None:
            text = f"The TPM ({self.tcti}) does not answer ({error}). Start it, or its resource manager, or correct {VARIABLE}."
        elif code == NOT_STARTED:
            text = f"The TPM ({self.tcti}) was not started up. Run tpm2_startup -c, or use its resource manager."
        elif code == NO_HIERARCHY:
            text = f"The owner hierarchy of the TPM ({self.tcti}) is turned off. Turn it on in the firmware's settings."
        elif code in FULL:
            text = (
                f"The TPM ({self.tcti}) has no free slot: other programs fill it. End them, or use a resource manager."
            )
        else:
            text = f"The TPM ({self.tcti}) refuses: {error} (0x{int(error.rc):x}). Restart it, then try again."
        raise KeyStoreError(text) from None

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
                    "tpm2-abrmd was in use before this process was forked, and D-Bus does not survive that. Use /dev/tpmrm0, or "
                    "let the server load the application in its workers (gunicorn without --preload)."
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
        """End the connection; with a resource manager, all that was loaded goes with it."""
        tpm, self._tpm = self._tpm, None
        if tpm is not None:
            if self._turn is not None:
                tpm.flush()
            tpm.close()

    def drop(self, name: Any) -> None:
        """Unload what was loaded under *name*, and all else, and forget it. No error: what is gone needs no unloading."""
        self._saved.pop(name, None)
        self.leave()

    def leave(self) -> None:
        """Unload everything and end the connection. The next use opens another."""
        if self._pid == os.getpid() and self._tpm is not None:
            with contextlib.suppress(AmeshError):
                self.run(lambda tpm: tpm.flush())
            with self._lock:
                self._close()

    def rest(self) -> bool:
        """Before a fork: wait until no command is under way, and let none begin. False if that can't be had.

        A child inherits what is open. A TPM that takes one connection at a time would go on waiting for what the parent has closed.
        """
        if self._thread == threading.get_ident():  # a signal handler that forks
            return False
        return self._lock.acquire(PATIENCE)

    def resume(self) -> None:
        """After a fork, in the parent."""
        self._lock.release()

    def leave_parent(self) -> None:
        """In a forked child: what the parent opened is its own, and using or closing it here would end it there."""
        if self._pid != os.getpid():
            _abandoned.append(self._tpm)
            turn = self._turn
            if turn is not None:
                turn.abandon()
                turn = Turn(self.tcti)
            self._reset(turn)


class _Tries:
    """How often what was tried already."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + PATIENCE
        self._counts: dict[str, int] = {}

    def left(self, what: str, limit: int) -> bool:
        """Count one more; False if there were *limit* already."""
        self._counts[what] = self._counts.get(what, 0) + 1
        return self._counts[what] <= limit

    def in_time(self) -> bool:
        """There is time left."""
        return time.monotonic() < self._deadline


_links: dict[str, Link] = {}
_links_lock = ForkSafeLock()
#: Connections of parent processes, kept so that nothing ever closes them here.
_abandoned: list[Any] = []
#: Links that rest while this thread forks.
_resting = threading.local()


class _Glib:
    """The threads of GLib, with which tpm2-abrmd is spoken to, do not exist in a forked child."""

    is_used = False
    was_forked = False


_glib = _Glib()


def link_to(tcti: str) -> Link:
    """The one link of this process to that TPM."""
    found = _links.get(tcti)
    if found is None:
        with _links_lock:
            found = _links.setdefault(tcti, Link(tcti))
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
