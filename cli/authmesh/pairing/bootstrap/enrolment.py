"""Enroll this device with a bootstrap token, which gives it an identity and a controller: one attempt, or many until the token expires."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.util
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from authmesh.device import Identity
from authmesh.device.directory import MAX_NAME_CHARACTERS
from authmesh.files.clock import utc_now
from authmesh.files.storage import make_private_directory
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.errors import AmeshError, IdentityExists, StorageError
from authmesh.protocol.pairing.errors import PairingError, PeerGone, PeerSilent, RelayClosed, RelayUnreachable
from authmesh.protocol.pairing.token import BootstrapToken, verify_token
from authmesh.protocol.pairing.token_errors import BootstrapPending, TokenAlreadyUsed

from ..backoff import Backoff
from ..options import Timeouts
from .staging import Staging, Trust
from .target import TEMPORARY, build_init, check_relay, present

LOCK = ".bootstrap.lock"
RELAYS_VARIABLE = "AMESH_BOOTSTRAP_RELAYS"

#: After these errors, the controller may have stored this device, and only the answer was lost: the staged device is kept.
_ANSWER_LOST = (PeerGone, PeerSilent, RelayClosed)
_RETRIED: tuple[type[AmeshError], ...] = (*TEMPORARY, BootstrapPending)
#: Interval between two checks whether another process of this machine has finished, in seconds.
_LOOK_SECONDS = 0.25


def allowed_relays(environ: Mapping[str, str] = os.environ) -> Sequence[str] | None:
    """Return the relays that a token may name (``AMESH_BOOTSTRAP_RELAYS``, separated by commas), or None for any relay."""
    named = environ.get(RELAYS_VARIABLE)
    return None if not named else [part.strip() for part in named.split(",") if part.strip()]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of enrollment.

    Attributes:
        identity: the identity of this device.
        controller: the device that may authenticate to this one.
    """

    identity: Identity
    controller: DeviceEntry


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Enroll this device with a bootstrap token.

    Attributes:
        directory: the device directory, which has no identity yet.
        trust: the allow list that the controller is stored in.
        relays: addresses of the relays that a token may name. Defaults to any relay.
        v1: True to reveal the token itself to the relay if the token has no key of its own.
        environ: the environment, for the variables of protocol.md §10.
        timeouts: the longest waits.
        first: the wait before the second attempt, in seconds; twice as long after each attempt.
        longest: the longest wait between two attempts.
        now: the clock.
        tls: the trusted certificates. Defaults to those of the system.
    """

    directory: Path
    trust: Trust = field(default_factory=Trust)
    relays: Sequence[str] | None = None
    v1: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    timeouts: Timeouts = field(default_factory=Timeouts)
    first: float = 1
    longest: float = 30
    now: Callable[[], dt.datetime] = utc_now
    tls: ssl.SSLContext | None = None

    def verify(self, text: str) -> BootstrapToken:
        """Verify a token, and that its relay is allowed. Nothing is sent or written.

        Raises:
            TokenError: the token cannot be used.
            RelayUnreachable: the package that connects to relays is not installed.
        """
        token = verify_token(text.strip(), now=self.now().timestamp())
        check_relay(token, self.relays)
        if importlib.util.find_spec("websockets") is None:
            raise RelayUnreachable(
                "The package websockets, which connects to relays, is not installed.",
                hint="Install it: pip install 'amesh-django[cli]'.",
            )
        return token

    def run(
        self,
        text: str,
        *,
        seconds: float | None = None,
        report: Callable[[PairingError, float], None] = lambda error, pause: None,
        stop: threading.Event | None = None,
    ) -> Enrolled:
        """Enroll this device. Attempts that fail for a temporary reason are repeated until the token expires.

        Args:
            text: the token.
            seconds: how long to repeat attempts; 0 makes one attempt. Defaults to the lifetime of the token.
            report: called after a failed attempt with the error and the seconds until the next attempt.
            stop: set by another thread to stop repeating.

        Raises:
            IdentityExists: there is already an identity, or another process made one meanwhile.
            PairingError: enrollment failed; nothing was stored.
            StorageError, KeyStoreError, AllowListError: this device cannot write or store.
        """
        backoff = Backoff(self.first, self.longest)
        end = None if seconds is None else time.monotonic() + seconds
        stop = stop or threading.Event()
        staging = Staging(self.directory, self.environ)
        lost = keep = False
        try:
            while True:
                try:
                    return self._attempt(text, staging)
                except TokenAlreadyUsed:
                    if lost:  # this device used the token itself; there is no thief
                        raise TokenAlreadyUsed(
                            "An earlier attempt of this device lost its answer, and the relay accepts a token only once. Nothing was "
                            "stored here.",
                            hint="Run provision --list on the controller; if it says that this token was used, revoke the device that "
                            "it names. Then make a new token with provision.",
                        ) from None
                    raise
                except _RETRIED as error:
                    lost = lost or isinstance(error, _ANSWER_LOST)
                    keep = keep or lost or staging.recorded() is not None
                    pause = _LOOK_SECONDS if isinstance(error, BootstrapPending) else backoff.next()
                    if end is not None and time.monotonic() + pause > end:
                        raise
                    if isinstance(error, PairingError):
                        report(error, pause)
                    if stop.wait(pause):
                        raise
                    if self._exists():
                        raise self._ignored() from None
        finally:
            if not keep and staging.recorded() is None:
                with contextlib.suppress(BootstrapPending, StorageError):
                    self._tidy(staging)

    def _tidy(self, staging: Staging) -> None:
        if staging.path.exists():
            with self._alone():
                if staging.recorded() is None:
                    staging.discard()

    def _attempt(self, text: str, staging: Staging) -> Enrolled:
        if self._exists():
            raise self._ignored()
        recorded = staging.recorded() is not None
        token = None if recorded else self.verify(text)
        make_private_directory(self.directory)
        with self._alone():
            if self._exists():
                raise self._ignored()
            if token is not None and staging.recorded() is None:
                self._present(token, text, staging)
            return Enrolled(*staging.settle(self.trust))

    def _present(self, token: BootstrapToken, text: str, staging: Staging) -> None:
        device = staging.device(clean(token.name)[:MAX_NAME_CHARACTERS])
        controller = DeviceEntry.new(
            token.public_key,
            clean(f"controller of {token.name}"),
            CONTROLLER,
            added_at=self.now(),
            added_by="handshake",
        )
        self.trust.check(device, controller)
        public_key = device.identity.public_key
        init = build_init(token, text.strip(), public_key, device.sign, v1=self.v1)
        asyncio.run(
            present(
                token,
                init,
                public_key,
                confirmed=lambda: staging.record(controller),
                timeouts=self.timeouts,
                tls=self.tls,
            )
        )

    def finish(self) -> Enrolled | None:
        """Finish the enrollment of another process that was interrupted after the acknowledgement.

        Returns:
            the result, or None if no enrollment was interrupted.

        Raises:
            BootstrapPending: another process is finishing it.
            AmeshError: as :meth:`run`.
        """
        staging = Staging(self.directory, self.environ)
        if self._exists() and staging.path.exists():  # the other process was killed just before it removed the folder
            with self._alone():
                staging.discard()
        if staging.recorded() is None or self._exists():
            return None
        with self._alone():
            if staging.recorded() is None or self._exists():
                return None
            return Enrolled(*staging.settle(self.trust))

    def _exists(self) -> bool:
        return (self.directory / "identity.json").exists()

    def _ignored(self) -> IdentityExists:
        return IdentityExists(f"There is already an identity in {self.directory}. The bootstrap token was ignored.")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock that allows one attempt at a time on this machine.

        Raises:
            BootstrapPending: another process or thread holds it.
            StorageError: the directory cannot be written to.
        """
        lock = filelock.FileLock(self.directory / LOCK, mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BootstrapPending(
                "Another process of this machine is enrolling it with a bootstrap token.", hint="Try again in a moment."
            ) from None
        except (OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or "the file system has no file locks"
            raise StorageError(
                f"{self.directory} cannot be written ({why}).", hint="Check its owner and its permissions."
            ) from None
        try:
            yield
        finally:
            lock.release()
