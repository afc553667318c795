"""Pair this device over a relay: dial, match, run a ceremony, store. The two ends are :meth:`Pairing.listen` and ``invite``."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol, TypeVar

from authmesh.device import AllowList, LocalDevice
from authmesh.files.clock import utc_now
from authmesh.protocol.display import clean
from authmesh.protocol.pairing.codes import CODE_SECONDS, generate_code, parse_code
from authmesh.protocol.pairing.errors import (
    CodeInUse,
    CodeNotFound,
    NobodyCame,
    PairingError,
    RelayClosed,
    RelayProtocolViolation,
)

from .ceremony.controller import controller_v1, controller_v2
from .ceremony.machine import Ceremony, Party
from .ceremony.target import target_v1, target_v2
from .driver import ControllerDriver, Paired, TargetDriver
from .operators import ControllerOperator, TargetOperator
from .wire import frames
from .wire.link import Link, check_address, open_link

T = TypeVar("T")
Version = Literal[1, 2]
#: How often another code is tried where the relay has one already.
CODE_TRIES = 3


class Blocking(Protocol):
    """Runs a function that blocks (files, database, key store) without blocking the event loop."""

    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds.

    Attributes:
        connect: for the relay to take the connection.
        relay: for the relay to answer, and to take what is sent.
        peer: at the target, for somebody to come with the code.
        message: for a message that the other side's program makes.
        person: for a person, here or at the other side.
        farewell: for the other side to go first.
    """

    connect: float = 10
    relay: float = 30
    peer: float = CODE_SECONDS
    message: float = 30
    person: float = 90
    farewell: float = 2


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """How this device pairs.

    Attributes:
        relay: ``ws://`` or ``wss://`` address of the relay.
        device: this device.
        allow_list: where the other side is stored.
        version: 2; 1 is the reference's, which a malicious relay can break: only where the operator says so.
        timeouts: how long to wait for what.
        now: the clock.
        tls: what certificates are trusted; None trusts those of the system.
        blocking: how functions that block are run. Django hands in one that keeps its database connections in order.
    """

    relay: str
    device: LocalDevice
    allow_list: AllowList
    version: Version = 2
    timeouts: Timeouts = field(default_factory=Timeouts)
    now: Callable[[], dt.datetime] = utc_now
    tls: ssl.SSLContext | None = None
    blocking: Blocking = asyncio.to_thread

    async def listen(
        self,
        operator: TargetOperator,
        *,
        permissions: Mapping[str, Any] | None = None,
        replacing: str | None = None,
        generate: Callable[[], str] = generate_code,
    ) -> Paired:
        """Be the target: show a code, wait for a controller, verify it, store it.

        Args:
            operator: the person here.
            permissions: what the controller may do besides, such as ``{"shell": True}``.
            replacing: device id of one that is revoked in the same step; None asks the operator where one must go.
            generate: makes one-time codes.

        Returns:
            the controller, which is stored and told so.

        Raises:
            PairingError: each failure its own; no controller is stored then.
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign; no controller is stored.
            Exception: what the operator's front end raises.
        """
        party = await self._prepare()
        operator.progress("connecting")
        async with self._open() as link:
            operator.progress("connected")
            await self._take_code(link, operator, generate)
            operator.progress("matched")
            script = target_v2(party) if self.version == 2 else target_v1(party)
            driver = TargetDriver(
                link=link,
                pairing=self,
                operator=operator,
                permissions=dict(permissions or {}),
                replacing=replacing,
            )
            return await driver.run(Ceremony(script))

    async def invite(self, code: str, operator: ControllerOperator) -> Paired:
        """Be the controller: come with a code, show the verification code, store the target.

        Args:
            code: the one-time code that the target shows.
            operator: the person here.

        Returns:
            the target, which is stored and has stored this device.

        Raises:
            NotConfirmed: the target is stored here, but did not say that it has stored this device.
            PairingError: each other failure its own; nothing is stored then.
            AllowListError, KeyStoreError, DirectoryError: this device can't store or sign.
            Exception: what the operator's front end raises.
        """
        code = parse_code(code)
        party = await self._prepare()
        operator.progress("connecting")
        async with self._open() as link:
            operator.progress("connected")
            await link.send(frames.connect(code))
            frame = await link.receive(self.timeouts.relay)
            if not isinstance(frame, frames.PeerFound):
                _refuse(frame)
            operator.progress("matched")
            script = controller_v2(party) if self.version == 2 else controller_v1(party)
            driver = ControllerDriver(link=link, pairing=self, operator=operator)
            return await driver.run(Ceremony(script))

    def _open(self) -> AbstractAsyncContextManager[Link]:
        return open_link(self.relay, seconds=self.timeouts.connect, patience=self.timeouts.relay, tls=self.tls)

    async def _prepare(self) -> Party:
        """What can fail without the relay fails before anybody is asked to read a code aloud."""
        check_address(self.relay)
        await self.blocking(self.device.seal_secret)  # unlocks the key
        await self.blocking(self.allow_list.read)
        identity = self.device.identity
        return Party(identity.public_key, clean(identity.friendly_name), self.device.sign, self.now)

    async def _take_code(self, link: Link, operator: TargetOperator, generate: Callable[[], str]) -> None:
        for left in reversed(range(CODE_TRIES)):
            code = generate()
            await link.send(frames.listen(code))
            frame = await link.receive(self.timeouts.relay)
            if isinstance(frame, frames.SessionOpen):
                break
            if not (left and isinstance(frame, frames.Failed) and isinstance(frame.error, CodeInUse)):
                _refuse(frame)
        operator.show_code(code, self.relay, self.timeouts.peer)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeouts.peer
        try:
            frame = await link.receive(self.timeouts.peer, NobodyCame)
        except RelayClosed:
            if loop.time() > end - 0.1 * self.timeouts.peer:  # its clock has run out before ours
                raise NobodyCame() from None
            raise
        if isinstance(frame, frames.Failed) and isinstance(frame.error, CodeNotFound):
            raise NobodyCame()
        if not isinstance(frame, frames.PeerFound):
            _refuse(frame)


def _refuse(frame: frames.Frame) -> NoReturn:
    """Before the two sides are matched, the relay says one thing or an error."""
    error: PairingError = frame.error if isinstance(frame, frames.Failed) else RelayProtocolViolation()
    raise error
