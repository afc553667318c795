"""Run one ceremony: carry its actions to the relay, to the person at this device and to the allow list, and the answers back."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.errors import ControllerLimitReached, DeviceNotFound, InvalidInput, Run
from authmesh.protocol.pairing.codes import Peer, parse_entered
from authmesh.protocol.pairing.errors import (
    InvalidPayload,
    PairingDeclined,
    PairingError,
    PeerGone,
    PeerSilent,
    RateLimited,
    RelayClosed,
    RelayFull,
    RelayProtocolViolation,
    SessionDataLimit,
    TookTooLong,
)

from .ceremony.machine import Action, AskCode, Ceremony, Confirm, Decide, Receive, Send, ShowCode, Store
from .operators import ControllerOperator, Met, Operator, TargetOperator
from .options import PairingOptions, T
from .wire import frames
from .wire.link import RelaySocket

#: Number of times that something without six digits may be typed. A malformed code reveals nothing about the right one.
MALFORMED_TRIES = 3
#: The errors that a relay may report after it has matched the two devices.
_IN_SESSION = (PeerGone, SessionDataLimit, RateLimited, RelayFull, RelayProtocolViolation)


@dataclass(frozen=True, slots=True)
class Paired:
    """The result of a pairing.

    Attributes:
        entry: the peer, as it is stored.
        known: its previous entry in the allow list, or None.
        replaced: the controller that was revoked in the same step, or None.
    """

    entry: DeviceEntry
    known: DeviceEntry | None = None
    replaced: DeviceEntry | None = None


@dataclass(kw_only=True)
class Driver(ABC):
    """Run a ceremony on this device. The subclasses are the two roles.

    Attributes:
        socket: the connection to the relay, which has matched the two devices.
        options: the options of the pairing.
        operator: the person at this device.
    """

    socket: RelaySocket
    options: PairingOptions
    operator: Operator
    _met: Met | None = field(default=None, init=False)
    _entry: DeviceEntry | None = field(default=None, init=False)
    _replaced: DeviceEntry | None = field(default=None, init=False)
    #: The error of this device that made the ceremony end; it is raised instead of what the ceremony says.
    _reason: Exception | None = field(default=None, init=False)
    _person_until: float | None = field(default=None, init=False)

    async def run(self, ceremony: Ceremony) -> Paired:
        """Run a ceremony to its end.

        Raises:
            PairingError: the ceremony ended early.
            Exception: the error of the operator's front end or of the allow list that made it end early.
        """
        try:
            while (action := ceremony.action) is not None:
                await self._step(ceremony, action)
        except PairingError:
            if self._reason is not None:
                raise self._reason from None
            raise
        assert self._entry is not None and self._met is not None  # noqa: S101 -- a ceremony ends well after Store only
        self.operator.progress("finished")
        await self._close()
        return Paired(self._entry, self._met.known, self._replaced)

    async def _step(self, ceremony: Ceremony, action: Action) -> None:
        try:
            answer = await self._perform(action)
        except PairingError as error:
            ceremony.fail(error)
            return
        if isinstance(action, Receive):  # a signature may follow, and some keys sign slowly
            await self.options.blocking(ceremony.answer, answer)
        else:
            ceremony.answer(answer)

    async def _perform(self, action: Action) -> str | bool | None:
        match action:
            case Send(payload):
                await self.socket.send(frames.data(payload))
                return None
            case Receive(patience):
                self._person_until = None
                timeouts = self.options.timeouts
                frame = await self.socket.receive(
                    timeouts.person if patience == "person" else timeouts.message, PeerSilent
                )
                return frame.payload if isinstance(frame, frames.Data) else _raise_end(frame)
            case Store():
                return await self._store(action)
            case AskCode(peer) | Decide(peer) | ShowCode(peer) | Confirm(peer):
                return await self._involve(action, await self._meet(peer))

    @abstractmethod
    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        """Perform an action that needs the operator, and return the answer."""

    @abstractmethod
    async def _close(self) -> None:
        """End the session so that no message on its way gets lost."""

    async def _meet(self, peer: Peer) -> Met:
        if self._met is None:
            known = await self.options.blocking(self.options.allow_list.find, peer.public_key)
            self._met = Met(peer, known)
            self.operator.progress("introduced")
        return self._met

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Ask the operator, and listen to the relay meanwhile: the other device must be silent, and may leave.

        Raises:
            PairingError: the operator took too long, or a message came.
        """
        loop = asyncio.get_running_loop()
        if self._person_until is None:  # consecutive questions share one deadline: the other device waits once for all
            self._person_until = loop.time() + self.options.timeouts.person
        asked, heard = asyncio.ensure_future(question), asyncio.ensure_future(self.socket.receive())
        try:
            await asyncio.wait(
                {asked, heard}, timeout=self._person_until - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            if heard.done():
                frame = heard.result()
                raise InvalidPayload() if isinstance(frame, frames.Data) else _end(frame)
            if not asked.done():
                raise TookTooLong()
            return asked.result()
        finally:
            for task in (asked, heard):
                task.cancel()
            await asyncio.gather(asked, heard, return_exceptions=True)

    async def _store(self, action: Store) -> bool:
        peer, options = action.peer, self.options
        entry = DeviceEntry.new(
            peer.public_key,
            peer.name,
            action.role,
            added_at=options.now(),
            added_by="handshake",
            permissions=self._permissions(),
        )
        replaced = self._replaced.device_id if self._replaced is not None else None

        def write() -> None:
            options.allow_list.add(entry, replacing=replaced)

        writing = asyncio.ensure_future(_await(options.blocking(write)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # a started write cannot be stopped; report truly whether it succeeded
            if not writing.cancelled() and writing.exception() is None:
                self.operator.progress("stored")
            raise
        except (
            Exception
        ) as error:  # any error of a disk or a database: tell the other device, raise the error at the end
            self._reason = error
            return False
        self._entry = entry
        self.operator.progress("stored")
        return True

    def _permissions(self) -> dict[str, Any]:
        return {}


async def _await(awaitable: Any) -> None:
    await awaitable


def _end(frame: frames.Frame) -> PairingError:
    """Return the error that a frame other than a payload means after the two devices were matched."""
    if isinstance(frame, frames.Failed):
        return frame.error if isinstance(frame.error, _IN_SESSION) else RelayClosed()
    return PeerGone() if isinstance(frame, frames.Done) else RelayProtocolViolation()


def _raise_end(frame: frames.Frame) -> NoReturn:
    raise _end(frame)


@dataclass(kw_only=True)
class TargetDriver(Driver):
    """Run a ceremony on the target.

    Attributes:
        permissions: permissions of the controller.
        replacing: device ID of a controller that is revoked in the same step; None asks the operator if one must be revoked.
    """

    operator: TargetOperator
    permissions: dict[str, Any] = field(default_factory=dict)
    replacing: str | None = None

    def _permissions(self) -> dict[str, Any]:
        return self.permissions

    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        """Perform an action that needs the operator.

        If the front end cannot ask and raises, the answer to the other device is no, and :meth:`run` raises that error.
        """
        no: Callable[[], str | bool] = str if isinstance(action, AskCode) else bool
        try:
            if isinstance(action, AskCode):
                return await self._enter_code(met)
            decided = await self._decide(met)
            if decided:
                self.operator.progress("decided")
            return decided
        except PairingError as error:
            if error.code != PairingDeclined.code:
                raise
            self._reason = error
        except Exception as error:
            self._reason = error
        return no()

    async def _enter_code(self, met: Met) -> str:
        for attempt in range(MALFORMED_TRIES):
            typed = await self._ask(self.operator.enter_verification_code(met, again=attempt > 0))
            if typed is None:
                raise PairingDeclined()
            entered = parse_entered(typed)
            if entered is not None:
                return entered
        raise PairingDeclined(
            "The verification code that was typed does not have six digits. Nothing was stored here.",
            hint="Pair again.",
        )

    async def _decide(self, met: Met) -> bool:
        self.operator.progress("verified")
        if await self._ask(self.operator.confirm_peer(met)) is not True:
            return False
        allow_list = self.options.allow_list
        entries = await self.options.blocking(allow_list.revocable)
        others = [e for e in entries if e.role == CONTROLLER and e.public_key != met.peer.public_key]
        if self.replacing is not None:
            self._replaced = _find_replaced(self.replacing, entries, met)
            others = [entry for entry in others if entry != self._replaced]
        limit = allow_list.controller_limit
        if len(others) < limit:
            return True
        if len(others) > limit or self.replacing is not None:
            raise ControllerLimitReached(
                f"This device accepts {limit} controller{'s' if limit != 1 else ''} (maxControllers) and has {len(others)}. "
                "Nothing was stored.",
                hint=(
                    f"Revoke {len(others) - limit + 1} of them first (",
                    Run("revoke", "DEVICE_ID"),
                    "), then pair again.",
                ),
            )
        chosen = await self._ask(self.operator.choose_replaced(met, others, limit))
        if chosen is None:
            return False
        self._replaced = _find_replaced(chosen, others, met)
        return True

    async def _close(self) -> None:
        # The last message is still on its way, and closing first may cut it off: wait for the controller to close.
        with suppress(PairingError):
            await self.socket.receive(self.options.timeouts.farewell)


def _find_replaced(device_id: str, entries: Sequence[DeviceEntry], met: Met) -> DeviceEntry:
    """Return the entry of the controller that the peer replaces.

    Raises:
        DeviceNotFound: *entries* has no such device.
        InvalidInput: it is the peer itself.
    """
    found = next((entry for entry in entries if entry.device_id == device_id), None)
    if found is None:
        raise DeviceNotFound(
            f"The allow list has no device {device_id} that could be replaced. Nothing was stored.",
            hint=("To see the devices in the list, run ", Run("list"), "."),
        )
    if found.public_key == met.peer.public_key:
        raise InvalidInput(
            "The device to replace is the device that is pairing. Nothing was stored.",
            hint="Pairing again updates a known device: pair again without --replace.",
        )
    return found


@dataclass(kw_only=True)
class ControllerDriver(Driver):
    """Run a ceremony on the controller."""

    operator: ControllerOperator

    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        if isinstance(action, ShowCode):
            self.operator.show_verification_code(action.code, met)
            return None
        self.operator.progress("agreed")
        question = self.operator.confirm_verified(met)
        try:
            if self.options.version == 1:  # a target of version 1 has left by now and does not wait for the answer
                confirmed = await question is True
            else:
                confirmed = await self._ask(question) is True
        except PairingError:
            raise
        except Exception as error:
            self._reason = error
            return False
        if confirmed:
            self.operator.progress("verified")
        return confirmed

    async def _close(self) -> None:
        if self.options.version == 2:  # the reference sends no frame of this kind
            with suppress(PairingError):
                await self.socket.send(frames.done())
