"""Freshness: before a server accepts a device, it knows that its hubs have nothing new to say (docs/fleet.md).

A hub tells its servers of changes by itself. A server that was away has missed that, so it asks: at the first signed request of a new
process, and if the newest message of a hub is older than ``AMESH["HUB_FRESH_SECONDS"]``.

1.  A process remembers until when it need not look. So a request costs one comparison, and a server without hubs one look at the list in
    memory a minute. A machine that slept, or a VM that was paused, looks at once.
2.  After that, one thread looks at the rows of the hubs: another process, or a message of the hub, may have brought it up to date.
3.  If not, it asks under a lease in the row of the hub, so that of all processes and hosts one asks. The request waits for a second at
    most, and so do those of other threads, unless the hub did not answer the last question, either. A row that was changed outside Django
    says nothing: neither when the hub was heard, nor where it is.
4.  Each hub is asked in a thread of its own, with a connection of its own, because one that hangs must not hold back the others, because
    the request may be in a transaction that is rolled back, and because nothing else ends a name server that hangs. What arrives late is
    applied nevertheless. A transaction of SQLite that has read keeps others from writing, so a request in one leaves the reading to a
    thread, too. If its transaction keeps the question from being asked nevertheless, the request is rejected, and the question follows.
5.  A message of a hub waits for the other hubs, which may have revoked that hub. It does not wait for its own hub, which says itself what is
    new, and is not rejected if another one stays silent: otherwise two hubs that a server has not heard would keep each other out for ever.
    A server that asks its hub is a target there, and its question waits for nothing. So nobody waits in a circle.
6.  If a hub stays silent, ``AMESH["WHEN_STALE"]`` says whether requests are accepted. The hubs come from the sealed list, so deleting rows
    makes no server forget that it follows one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from django.db import DatabaseError, InterfaceError, connections

from amesh_django.conf import amesh_settings
from amesh_django.models import Hub
from amesh_django.server import server_device
from amesh_django.spelling import manage_py
from amesh_django.trust import SealedList, current_list
from amesh_django.trust.database import reads_for_itself
from amesh_django.trust.verified import Snapshot
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.errors import AllowListUnavailable, AmeshError
from authmesh.protocol.fleet.errors import TrustIsStale

from .following import follows, is_hub, newest_id
from .leases import HubLease
from .pulling import Followed, HubIsAway, pull
from .rarely import rarely
from .silence import MAX_SKEW_SECONDS, FollowedHub, StaleHub, followed_hubs, stale_of

logger = logging.getLogger("amesh_django.fleet")

#: Seconds that a request waits for an answer of a hub, or for another thread or process that asks.
PATIENCE_SECONDS = 1.0
#: Seconds after which the rows of the hubs are looked at again, at the latest.
_LOOK_SECONDS = 60.0
#: Seconds after which a hub is asked again. One that cannot be reached is asked again after ten times as long as it took to find that
#: out, within these limits: a connection that is refused costs nothing, and the hub may be back at any moment.
_MIN_RETRY_SECONDS, _RETRY_SECONDS = 1.0, 10.0
_RETRY_FACTOR = 10
_POLL_SECONDS = 0.05
_LOCKED = "The database was locked for a second, so no hub could be asked for changes. The request was rejected, and the hubs are asked after it."
_UNLOCK = (
    "If every first request is rejected, its own transaction has the lock (ATOMIC_REQUESTS with SQLite): verify devices in the middleware, which "
    "runs before the transaction."
)


class _Until(NamedTuple):
    """A moment by two clocks. It has come if one of them says so: only one goes on while the machine sleeps, or its VM is paused, and only
    the other one is never set back."""

    monotonic: float
    clock: float


class Freshness:
    """What a process knows of the freshness of its list.

    Args:
        clock: returns Unix seconds.
        monotonic: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._lock = ForkSafeLock()
        self.reset()

    def reset(self) -> None:
        """Begin like a new process."""
        #: When each hub may be asked again, and those that did not answer the last question: device IDs. Threads replace the latter.
        self._ask_after, self._silent = dict[str, _Until](), frozenset[str]()
        #: Whether the newest question to each hub has begun, which needs a write in the database: device ID → event.
        self._begun = dict[str, threading.Event]()
        #: Until when nothing must be looked at, and why requests are refused until then; empty if they are not. Threads replace it.
        self._held = (_Until(float("-inf"), float("-inf")), "")
        self._started = self._clock()

    def ensure(self, public_key: bytes = b"") -> None:
        """Ask the hubs for changes, if that is due.

        Args:
            public_key: the key of the request. A hub waits only for the other hubs, and a server that asks its hub, which is no controller
                of it, for nothing.

        Raises:
            TrustIsStale: a hub has been silent for too long, and the settings say to refuse.
            AllowListUnavailable: the database does not answer.
            AmeshError: the list cannot be read, as for :meth:`~amesh_django.trust.SealedList.snapshot`.
        """
        try:
            self._ensure(public_key)
        except (DatabaseError, InterfaceError) as error:
            raise AllowListUnavailable(reason=type(error).__name__) from error

    def _ensure(self, public_key: bytes) -> None:
        until, stale = self._held
        is_held = self._is_before(until)
        if is_held and not stale:
            return
        sealed = current_list()
        look = partial(self._look, sealed, public_key, stale if is_held else "")
        connection = connections[sealed.using]
        if connection.vendor == "sqlite" and connection.in_atomic_block and not reads_for_itself(connection):
            _apart(look)  # what the transaction of the request reads, it locks, so that no answer could be applied
        else:
            look()

    def _look(self, sealed: SealedList, public_key: bytes, stale: str) -> None:
        """Look whether the hubs were heard, and ask them if not.

        Args:
            sealed: the list.
            public_key: the key of the request.
            stale: why requests are refused now; empty if that must be found out.
        """
        known = sealed.snapshot()
        caller = known.by_key.get(public_key)
        if caller is not None and caller.role != CONTROLLER:
            return
        speaker = newest_id(known, caller.device_id) if caller is not None and is_hub(caller) else ""
        if stale:
            if speaker:
                return
            raise TrustIsStale(detail=stale)
        if not follows(known, self._clock()):
            self._hold(_LOOK_SECONDS)
            return
        hubs = self._hubs(sealed, known)
        due = [hub for hub in self._due(hubs) if hub.device.device_id != speaker]
        if due:
            asked = {hub.device.device_id for hub in due}
            self._ask(sealed, asked)
            if not asked <= self._silent and any(
                not begun.is_set() for name, begun in [*self._begun.items()] if name in asked
            ):
                raise AllowListUnavailable(_LOCKED, hint=_UNLOCK, reason="locked")
            hubs = self._hubs(sealed, sealed.snapshot())
            self._silent = self._silent - asked | {
                name for hub in self._due(hubs) if (name := hub.device.device_id) in asked
            }
        if not speaker:
            self._judge(sealed, hubs)

    # --- what is known ---

    def _hubs(self, sealed: SealedList, known: Snapshot) -> list[FollowedHub]:
        return followed_hubs(sealed, known, self._clock())

    def _due(self, hubs: Sequence[FollowedHub]) -> list[FollowedHub]:
        """Return the hubs whose newest message is too old, or was before this process began."""
        return [hub for hub in hubs if hub.heard_at is None or not self._is_fresh(hub.heard_at)]

    def _is_fresh(self, heard_at: float) -> bool:
        age = self._clock() - heard_at
        return heard_at >= self._started and -MAX_SKEW_SECONDS <= age < amesh_settings().HUB_FRESH_SECONDS

    # --- asking ---

    def _ask(self, sealed: SealedList, names: set[str]) -> None:
        """Ask hubs, or wait for another thread that does, unless they did not answer the last question, either.

        Args:
            sealed: the list.
            names: device IDs of the hubs.
        """
        try:
            server_device()  # unlocking the key may take a second, which is not the hub's, and all threads wait for that
        except AmeshError as error:
            if rarely("unlock"):
                logger.error("The hubs cannot be asked for changes: %s", error.text(manage_py))
            return
        if not self._lock.acquire(0 if names <= self._silent else PATIENCE_SECONDS):
            return
        try:
            names = {name for name in names if not (name in self._ask_after and self._is_before(self._ask_after[name]))}
            if not names:
                return
            self._ask_after.update(dict.fromkeys(names, self._in(_RETRY_SECONDS)))
            due = [hub for hub in self._due(self._hubs(sealed, sealed.snapshot())) if hub.device.device_id in names]
            begun = {hub.device.device_id: threading.Event() for hub in due}
            self._begun.update(begun)
            self._run(sealed, [partial(self._ask_safely, sealed, hub, begun[hub.device.device_id]) for hub in due])
        finally:
            self._lock.release()

    def _run(self, sealed: SealedList, works: Sequence[Callable[[], None]]) -> None:
        """Run each work in a thread of its own, and wait for all a second. In a test case, which no other connection sees, run them here."""
        if reads_for_itself(connections[sealed.using]):
            for work in works:
                work()
            return

        def run(work: Callable[[], None]) -> None:
            try:
                work()
            finally:
                connections.close_all()

        threads = [threading.Thread(target=run, args=(work,), name="amesh-pull", daemon=True) for work in works]
        end = time.monotonic() + PATIENCE_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:  # a hub that hangs must not use up the second of the others
            thread.join(max(0.0, end - time.monotonic()))

    def _ask_safely(self, sealed: SealedList, hub: FollowedHub, begun: threading.Event) -> None:
        try:
            self._ask_one(sealed, hub, begun)
        except (DatabaseError, InterfaceError) as error:
            # Until a question has begun, requests are rejected: it is not the hub that is silent.
            self._ask_after[hub.device.device_id] = self._in(_MIN_RETRY_SECONDS)
            logger.error("The hub %s could not be asked for changes: %s", hub.device.device_id, type(error).__name__)
            return
        except Exception:  # whatever one hub says, the others are asked
            logger.exception("The hub %s could not be asked for changes.", hub.device.device_id)
        begun.set()

    def _ask_one(self, sealed: SealedList, hub: FollowedHub, begun: threading.Event) -> None:
        row = hub.row
        if row is None or not row.url:
            return  # it has never said where it is
        try:
            lease = HubLease(sealed.using, row.pk)
            is_taken = lease.take(self._clock())
            begun.set()
            end = time.monotonic() + PATIENCE_SECONDS
            while (
                not is_taken and time.monotonic() < end
            ):  # another process asks; if it was killed, its lease ends by itself
                time.sleep(_POLL_SECONDS)
                is_taken = lease.take(self._clock())
            if not is_taken:
                return
            try:
                now = [one for one in self._hubs(sealed, sealed.snapshot()) if one.public_key == hub.public_key]
                for due in self._due(now):  # another process may just have asked
                    if due.row is not None:
                        self._pull(due, due.row)
                sealed.snapshot()  # for the request that waits, whose transaction may not see the change
            finally:
                lease.release()
        except AmeshError as error:
            self._silent |= {hub.device.device_id}
            if rarely(f"pull {hub.device.device_id}"):
                logger.warning(
                    "The hub %s could not be asked for changes: %s", hub.device.device_id, error.text(manage_py)
                )

    def _pull(self, hub: FollowedHub, row: Hub) -> None:
        started = self._monotonic()
        try:
            pull(Followed(hub.device, hub.public_key, row.url, row.epoch, row.applied), now=self._clock())
        except HubIsAway:
            pause = min(max(_RETRY_FACTOR * (self._monotonic() - started), _MIN_RETRY_SECONDS), _RETRY_SECONDS)
            self._ask_after[hub.device.device_id] = self._in(pause)
            raise

    # --- judging ---

    def _judge(self, sealed: SealedList, hubs: Sequence[FollowedHub]) -> None:
        """Note until when nothing must be looked at, or refuse.

        Raises:
            TrustIsStale: a hub has been silent for too long, and the settings say to refuse.
        """
        settings, now = amesh_settings(), self._clock()
        due = self._due(hubs)
        if not due:
            ages = [now - hub.heard_at for hub in hubs if hub.heard_at is not None]
            seconds = settings.HUB_FRESH_SECONDS - max(ages, default=0.0)
            self._hold(min(max(seconds, 1.0), _LOOK_SECONDS))
            return
        for one in stale_of(sealed, due, now):
            if settings.WHEN_STALE == "refuse":
                stale = f"the hub {one.device_id} was heard last at {one.heard}"
                self._hold(1.0, stale)
                raise TrustIsStale(detail=stale)
            if rarely(f"stale {one.device_id}"):
                logger.warning(
                    "trust_is_stale: the hub %s was heard last at %s. Requests are accepted, because AMESH['WHEN_STALE'] is 'allow'.",
                    one.device_id,
                    one.heard,
                )
        self._hold(1.0)

    def _hold(self, seconds: float, stale: str = "") -> None:
        """Let what was found hold for a while: nothing is looked at before."""
        self._held = (self._in(seconds), stale)

    # --- time ---

    def _in(self, seconds: float) -> _Until:
        """Return the moment after some seconds."""
        return _Until(self._monotonic() + seconds, self._clock() + seconds)

    def _is_before(self, until: _Until) -> bool:
        return self._monotonic() < until.monotonic and self._clock() < until.clock

    def stale(self) -> list[StaleHub]:
        """Return the hubs that have been silent for too long. Nobody is asked.

        Raises:
            AmeshError: the list cannot be read, as for :meth:`~amesh_django.trust.SealedList.snapshot`.
        """
        sealed = current_list()
        return list(stale_of(sealed, self._hubs(sealed, sealed.snapshot()), self._clock()))


def _apart(work: Callable[[], None]) -> None:
    """Run *work* in a thread of its own, with connections of its own, and wait until it is done."""

    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


_freshness = Freshness()
ensure_fresh = _freshness.ensure
stale_hubs = _freshness.stale


def reset() -> None:
    """Begin like a new process: the next signed request asks the hubs."""
    _freshness.reset()


os.register_at_fork(after_in_child=reset)
