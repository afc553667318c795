"""Enrolment on the first request: a thread of its own tries as long as the token lives; whoever asks waits for a moment at most."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.errors import AmeshError, IdentityExists
from authmesh.protocol.pairing.errors import BootstrapFailed, BootstrapPending, PairingError, TokenNotYetValid

from .enrolment import Enrolment
from .staging import FOLDER

logger = logging.getLogger("amesh_django.pairing")

#: After an error that is no matter of the token (a disk, a database) it is tried again, by a request that comes so many seconds later.
PAUSE_SECONDS = 5.0


class _Attempt:
    """The thread of this process for one directory, and what came of it."""

    def __init__(
        self, enrolment: Enrolment, text: str, environ: MutableMapping[str, str], after: Callable[[], None]
    ) -> None:
        self._enrolment = enrolment
        self._text = text
        self._environ = environ
        self._after = after
        self.started = time.monotonic()
        self.ended = 0.0
        self.why: AmeshError | None = None
        self.is_final = False
        #: Set when the first attempt has succeeded or failed: nobody waits for the others.
        self.tried = threading.Event()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="amesh-bootstrap", daemon=True)

    def is_token(self, text: str) -> bool:
        return self._text in ("", text)

    def _run(self) -> None:
        try:
            enrolled = self._enrolment.run(self._text, report=self._report)
            logger.info(
                "This device was enrolled as %s by its bootstrap token; %s may authenticate to it.",
                enrolled.identity.device_id,
                enrolled.controller.device_id,
            )
            self._forget()
        except IdentityExists:  # another process of this machine was faster
            self._forget()
        except PairingError as error:
            self.why = error
            self.is_final = not isinstance(error, TokenNotYetValid)  # which a clock that is set mends, as after a boot
            logger.error("This device can't be enrolled with its bootstrap token (%s): %s", error.code, error)
        except AmeshError as error:
            self.why = error
            logger.error("This device could not be enrolled with its bootstrap token (%s): %s", error.code, error)
        except Exception as error:  # a bug: it must not end unseen, and its text is not ours to log
            self.why = BootstrapPending(f"Enrolment ended unexpectedly ({type(error).__name__}).")
            logger.error("Enrolment with a bootstrap token ended unexpectedly: %s", type(error).__name__)
        finally:
            self.ended = time.monotonic()
            self._after()
            self.done.set()
            self.tried.set()

    def _report(self, error: PairingError, pause: float) -> None:
        self.why = error
        self.tried.set()
        logger.warning(
            "This device is not enrolled yet (%s): %s It tries again in %.0f s.", error.code, error, max(pause, 1)
        )

    def _forget(self) -> None:
        text, self._text = self._text, ""
        if self._environ.get(TOKEN_VARIABLE) == text:
            self._environ.pop(TOKEN_VARIABLE, None)


_attempts: dict[Path, _Attempt] = {}
_ignored: set[Path] = set()
_lock = ForkSafeLock()


def _after_fork() -> None:
    """The threads of the parent do not exist here."""
    _attempts.clear()


os.register_at_fork(after_in_child=_after_fork)


def reset() -> None:
    """Forget what came of attempts. For tests."""
    _attempts.clear()
    _ignored.clear()


def is_due(directory: Path, environ: MutableMapping[str, str] = os.environ) -> bool:
    """True if there is no identity, but a token to get one by, or an enrolment that was interrupted."""
    if (directory / "identity.json").exists():
        return False
    return bool(environ.get(TOKEN_VARIABLE, "").strip()) or (directory / FOLDER / "acknowledged.json").exists()


def ignore_token(directory: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """This device has an identity: a token that is still in the environment is ignored, with a warning once a process."""
    if environ.get(TOKEN_VARIABLE) and directory not in _ignored:
        _ignored.add(directory)
        logger.warning(
            "%s is ignored: there is an identity in %s already. Take the variable out of the environment.",
            TOKEN_VARIABLE,
            directory,
        )


def ensure_identity(
    make: Callable[[], Enrolment],
    directory: Path,
    *,
    patience: float,
    environ: MutableMapping[str, str] = os.environ,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Return once there is an identity. Where there is none, and a token, a thread is at it; this waits for its first attempt.

    Args:
        make: says how to enrol; called once.
        directory: the device directory.
        patience: how long the first attempt is waited for, in seconds, counted from its beginning.
        environ: where the token is, and where it is removed once it was used.
        after: called in that thread at its end.

    Raises:
        BootstrapPending: not yet. The sentence says why.
        BootstrapFailed: never, with this token.
    """
    if not is_due(directory, environ):
        return
    text = environ.get(TOKEN_VARIABLE, "").strip()
    attempt = _attempts.get(directory)
    if attempt is None or not attempt.is_token(text) or _may_begin_anew(attempt):
        with _lock:
            attempt = _attempts.get(directory)
            if attempt is None or not attempt.is_token(text) or _may_begin_anew(attempt):
                attempt = _attempts[directory] = _Attempt(make(), text, environ, after)
                attempt.thread.start()
    attempt.tried.wait(max(0.0, attempt.started + patience - time.monotonic()))
    if (directory / "identity.json").exists():
        attempt.done.wait(1.0)  # it still has to forget the token
        return
    if attempt.is_final and attempt.why is not None:
        raise BootstrapFailed(attempt.why) from attempt.why
    why = f" {attempt.why}" if attempt.why is not None else ""
    raise BootstrapPending(f"This device has no identity yet: it is being enrolled with its bootstrap token.{why}")


def _may_begin_anew(attempt: _Attempt) -> bool:
    return attempt.done.is_set() and not attempt.is_final and time.monotonic() > attempt.ended + PAUSE_SECONDS
