"""Give this device an identity and a controller by a bootstrap token: one attempt, or as many as the token lives for."""

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
from authmesh.protocol.pairing.errors import (
    BootstrapPending,
    PairingError,
    PeerGone,
    PeerSilent,
    RelayClosed,
    RelayUnreachable,
    TokenAlreadyUsed,
)
from authmesh.protocol.pairing.token import BootstrapToken, verify_token

from ..backoff import Backoff
from ..client import Timeouts
from .staging import Staging, Trust
from .target import PASSING, build_init, check_relay, present

LOCK = ".bootstrap.lock"
RELAYS_VARIABLE = "AMESH_BOOTSTRAP_RELAYS"

#: The controller may have let this device in, and only the answer was lost: what is aside is kept for the next attempt.
_ANSWER_LOST = (PeerGone, PeerSilent, RelayClosed)
_AFTER_THAT = (
    "An attempt of this device lost its answer, and the relay takes the token no second time. Nothing was stored here. Make a new token "
    "with provision; if provision --list says that this one was used, revoke the device that it names."
)
_RETRIED: tuple[type[AmeshError], ...] = (*PASSING, BootstrapPending)
#: How often it is looked whether another process of this machine is through, in seconds.
_LOOK_SECONDS = 0.25


def allowed_relays(environ: Mapping[str, str] = os.environ) -> Sequence[str] | None:
    """The relays that a token may name: ``AMESH_BOOTSTRAP_RELAYS``, with commas. None means any."""
    named = environ.get(RELAYS_VARIABLE)
    return None if not named else [part.strip() for part in named.split(",") if part.strip()]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """This device has an identity now.

    Attributes:
        identity: its own.
        controller: who may authenticate to it.
    """

    identity: Identity
    controller: DeviceEntry


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """How this device is enrolled.

    Attributes:
        directory: its device directory, which has no identity yet.
        trust: where the controller is stored.
        relays: addresses of the relays that a token may name; None allows every one.
        v1: show the token itself to the relay, where it has no key of its own.
        environ: where the variables of protocol.md §10 are looked up.
        timeouts: how long to wait for what.
        first: how long to wait before the second attempt, in seconds; twice as long after each.
        longest: the longest such wait.
        now: the clock.
        tls: what certificates are trusted; None trusts those of the system.
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
        """Verify a token in full, and that its relay is allowed. Nothing is dialled or written.

        Raises:
            TokenError: each reason its own.
        """
        token = verify_token(text.strip(), now=self.now().timestamp())
        check_relay(token, self.relays)
        if importlib.util.find_spec("websockets") is None:
            raise RelayUnreachable(
                "Talking to a relay needs the package websockets. Install it: pip install 'amesh-django[cli]'."
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
        """Be enrolled; what may go away by itself is tried again until the token expires.

        Args:
            text: the token.
            seconds: how long to try; 0 makes one attempt. None tries as long as the token lives.
            report: called with why an attempt failed, and how long it is until the next.
            stop: set by another thread to give up.

        Raises:
            IdentityExists: there is an identity already, or another process made one meanwhile.
            PairingError: each failure its own; nothing was stored.
            StorageError, KeyStoreError, AllowListError: this device can't write or store.
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
                    if lost:  # by this device: no reason to look for a thief
                        raise TokenAlreadyUsed(_AFTER_THAT) from None
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
        init = build_init(token, text.strip(), device, v1=self.v1)
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
        """Finish what another process was interrupted in, after its token was acknowledged. None if there is nothing of the kind.

        Raises:
            BootstrapPending: it is at it.
            AmeshError: as :meth:`run`.
        """
        staging = Staging(self.directory, self.environ)
        if self._exists() and staging.path.exists():  # killed when all was done but the tidying
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
        return IdentityExists(f"There is an identity in {self.directory} already. The bootstrap token was ignored.")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One attempt at a time on this machine.

        Raises:
            BootstrapPending: another process or thread is at it.
            StorageError: the directory can't be written to.
        """
        lock = filelock.FileLock(self.directory / LOCK, mode=0o600, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BootstrapPending("Another process of this machine is enrolling it with a bootstrap token.") from None
        except (OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or "no file locks here"
            raise StorageError(f"{self.directory} can't be written ({why}). Check owner and permissions.") from None
        try:
            yield
        finally:
            lock.release()
