"""Pair this device over a relay: connect, match the two devices, run a ceremony, store the peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NoReturn

from authmesh.protocol.display import clean
from authmesh.protocol.pairing.codes import generate_code, parse_code
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
from .options import PairingOptions
from .wire import frames
from .wire.link import RelaySocket, check_address, open_socket

#: Number of one-time codes to try, because the relay may have another pairing with the same code.
CODE_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Pairing(PairingOptions):
    """Pair this device with another one: :meth:`listen` on the target, :meth:`invite` on the controller."""

    async def listen(
        self,
        operator: TargetOperator,
        *,
        permissions: Mapping[str, Any] | None = None,
        replacing: str | None = None,
        generate: Callable[[], str] = generate_code,
    ) -> Paired:
        """Pair as the target: show a one-time code, wait for a controller, verify it, store it.

        Args:
            operator: the person at this device.
            permissions: permissions of the controller, such as ``{"shell": True}``.
            replacing: device ID of a controller that is revoked in the same step. Defaults to asking the operator if one must be
                revoked.
            generate: returns one-time codes.

        Returns:
            the controller, which is stored and has been told so.

        Raises:
            PairingError: pairing failed; no controller was stored.
            AllowListError, KeyStoreError, DirectoryError: this device cannot store or sign; no controller was stored.
            Exception: any error that the operator's front end raises.
        """
        party = await self._prepare()
        operator.progress("connecting")
        async with self._open() as socket:
            operator.progress("connected")
            await self._use_code(socket, operator, generate)
            operator.progress("matched")
            script = target_v2(party) if self.version == 2 else target_v1(party)
            driver = TargetDriver(
                socket=socket,
                options=self,
                operator=operator,
                permissions=dict(permissions or {}),
                replacing=replacing,
            )
            return await driver.run(Ceremony(script))

    async def invite(self, code: str, operator: ControllerOperator) -> Paired:
        """Pair as the controller: use a one-time code, show the verification code, store the target.

        Args:
            code: the one-time code that the target shows.
            operator: the person at this device.

        Returns:
            the target, which is stored and has stored this device.

        Raises:
            NotConfirmed: the target is stored, but did not confirm that it has stored this device.
            PairingError: pairing failed; nothing was stored.
            AllowListError, KeyStoreError, DirectoryError: this device cannot store or sign.
            Exception: any error that the operator's front end raises.
        """
        code = parse_code(code)
        party = await self._prepare()
        operator.progress("connecting")
        async with self._open() as socket:
            operator.progress("connected")
            await socket.send(frames.connect(code))
            frame = await socket.receive(self.timeouts.relay)
            if not isinstance(frame, frames.PeerFound):
                _raise_refusal(frame)
            operator.progress("matched")
            script = controller_v2(party) if self.version == 2 else controller_v1(party)
            driver = ControllerDriver(socket=socket, options=self, operator=operator)
            return await driver.run(Ceremony(script))

    def _open(self) -> AbstractAsyncContextManager[RelaySocket]:
        return open_socket(self.relay, seconds=self.timeouts.connect, patience=self.timeouts.relay, tls=self.tls)

    async def _prepare(self) -> Party:
        """Do everything that can fail without the relay before a person has to read a code aloud."""
        check_address(self.relay)
        await self.blocking(self.device.seal_secret)  # unlocks the key
        await self.blocking(self.allow_list.read)
        identity = self.device.identity
        return Party(identity.public_key, clean(identity.friendly_name), self.device.sign, self.now)

    async def _use_code(self, socket: RelaySocket, operator: TargetOperator, generate: Callable[[], str]) -> None:
        """Register a one-time code at the relay, show it, and return when a controller has used it."""
        for tries_left in reversed(range(CODE_TRIES)):
            code = generate()
            await socket.send(frames.listen(code))
            frame = await socket.receive(self.timeouts.relay)
            if isinstance(frame, frames.SessionOpen):
                break
            if not (tries_left and isinstance(frame, frames.Failed) and isinstance(frame.error, CodeInUse)):
                _raise_refusal(frame)
        operator.show_code(code, self.relay, self.timeouts.peer)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeouts.peer
        try:
            frame = await socket.receive(self.timeouts.peer, NobodyCame)
        except RelayClosed:
            if loop.time() > end - 0.1 * self.timeouts.peer:  # the code has expired by the clock of the relay
                raise NobodyCame() from None
            raise
        if isinstance(frame, frames.Failed) and isinstance(frame.error, CodeNotFound):
            raise NobodyCame()
        if not isinstance(frame, frames.PeerFound):
            _raise_refusal(frame)


def _raise_refusal(frame: frames.Frame) -> NoReturn:
    """Raise the error that a frame means if the relay should have opened a session or matched the two devices."""
    error: PairingError = frame.error if isinstance(frame, frames.Failed) else RelayProtocolViolation()
    raise error
