"""Enrollment on the first request: a thread makes attempts until the token expires, while each request waits for a moment at most."""

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
from authmesh.protocol.pairing.errors import PairingError
from authmesh.protocol.pairing.token_errors import BootstrapFailed, BootstrapPending, TokenNotYetValid

from .enrolment import Enrolment
from .staging import FOLDER

logger = logging.getLogger("amesh_django.pairing")

#: After an error that is not about the token (a disk, a database), a request that comes this many seconds later starts a new thread.
PAUSE_SECONDS = 5.0


class _Attempt:
    """The thread of this process for one device directory, and its result."""

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
        #: Set when the first attempt has succeeded or failed: requests do not wait for the others.
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
            self.is_final = not isinstance(
                error, TokenNotYetValid
            )  # setting the clock fixes that, such as after a boot
            logger.error("This device cannot be enrolled with its bootstrap token (%s): %s", error.code, error)
        except AmeshError as error:
            self.why = error
            logger.error("This device could not be enrolled with its bootstrap token (%s): %s", error.code, error)
        except Exception as error:  # a bug: it must be visible, but its text may hold secrets
            self.why = BootstrapPending(f"Enrollment ended unexpectedly ({type(error).__name__}).")
            logger.error("Enrollment with a bootstrap token ended unexpectedly: %s", type(error).__name__)
        finally:
            self.ended = time.monotonic()
            self._after()
            self.done.set()
            self.tried.set()

    def _report(self, error: PairingError, pause: float) -> None:
        self.why = error
        self.tried.set()
        logger.warning(
            "This device is not enrolled yet (%s): %s The next attempt is in %.0f s.", error.code, error, max(pause, 1)
        )

    def _forget(self) -> None:
        text, self._text = self._text, ""
        if self._environ.get(TOKEN_VARIABLE) == text:
            self._environ.pop(TOKEN_VARIABLE, None)


_attempts: dict[Path, _Attempt] = {}
_ignored: set[Path] = set()
_lock = ForkSafeLock()


def _after_fork() -> None:
    """Forget the threads of the parent process, which do not exist in a child."""
    _attempts.clear()


os.register_at_fork(after_in_child=_after_fork)


def reset() -> None:
    """Forget all results. For tests."""
    _attempts.clear()
    _ignored.clear()


def is_due(directory: Path, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Return True if there is no identity, but a token to get one, or an enrollment that was interrupted."""
    if (directory / "identity.json").exists():
        return False
    return bool(environ.get(TOKEN_VARIABLE, "").strip()) or (directory / FOLDER / "acknowledged.json").exists()


def ignore_token(directory: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Log a warning, once per process, if the environment still has a token although the device has an identity."""
    if environ.get(TOKEN_VARIABLE) and directory not in _ignored:
        _ignored.add(directory)
        logger.warning(
            "%s is ignored: there is already an identity in %s. Unset the variable.",
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
    """Return if there is an identity, or no token to get one; otherwise enroll this device in a thread.

    This waits for the first attempt of the thread only.

    Args:
        make: returns the enrollment; called once.
        directory: the device directory.
        patience: the longest wait for the first attempt, in seconds from its start.
        environ: the environment with the token, which is removed from it after it was used.
        after: called at the end of the thread, in the thread.

    Raises:
        BootstrapPending: there is no identity yet; the message has the reason.
        BootstrapFailed: this token cannot give the device an identity.
    """
    if not is_due(directory, environ):
        return
    text = environ.get(TOKEN_VARIABLE, "").strip()
    attempt = _attempts.get(directory)
    if attempt is None or not attempt.is_token(text) or _may_start_again(attempt):
        with _lock:
            attempt = _attempts.get(directory)
            if attempt is None or not attempt.is_token(text) or _may_start_again(attempt):
                attempt = _attempts[directory] = _Attempt(make(), text, environ, after)
                attempt.thread.start()
    attempt.tried.wait(max(0.0, attempt.started + patience - time.monotonic()))
    if (directory / "identity.json").exists():
        attempt.done.wait(1.0)  # the thread still has to remove the token from the environment
        return
    if attempt.is_final and attempt.why is not None:
        raise BootstrapFailed(attempt.why) from attempt.why
    pending = "This device has no identity yet: it is being enrolled with its bootstrap token."
    if attempt.why is None:
        raise BootstrapPending(pending, hint="Try again in a moment.")
    raise BootstrapPending(f"{pending} {attempt.why.message}", hint=attempt.why.hint)


def _may_start_again(attempt: _Attempt) -> bool:
    return attempt.done.is_set() and not attempt.is_final and time.monotonic() > attempt.ended + PAUSE_SECONDS
