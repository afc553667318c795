"""Runs one ceremony: carries its wants to the relay, to the person here and to the allow list, and the answers back."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.errors import ControllerLimitReached, DeviceNotFound, InvalidInput
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
from .wire import frames
from .wire.link import Link

if TYPE_CHECKING:
    from .client import Pairing

T = TypeVar("T")

#: How often something may be typed that is not six digits. None of it tells anything about the code.
MALFORMED_TRIES = 3
#: What a relay may report once the two sides are matched.
_IN_SESSION = (PeerGone, SessionDataLimit, RateLimited, RelayFull, RelayProtocolViolation)


@dataclass(frozen=True, slots=True)
class Paired:
    """A pairing that is done.

    Attributes:
        entry: the other side, as it is stored.
        known: as it was stored before; None for a stranger.
        replaced: the controller that was revoked in the same step.
    """

    entry: DeviceEntry
    known: DeviceEntry | None = None
    replaced: DeviceEntry | None = None


@dataclass(kw_only=True)
class Driver(ABC):
    """What both ends have.

    Attributes:
        link: to the relay, matched.
        pairing: how this device pairs.
        operator: the person here.
    """

    link: Link
    pairing: Pairing
    operator: Operator
    _met: Met | None = field(default=None, init=False)
    _entry: DeviceEntry | None = field(default=None, init=False)
    _replaced: DeviceEntry | None = field(default=None, init=False)
    _reason: Exception | None = field(default=None, init=False)
    _person_until: float | None = field(default=None, init=False)

    async def run(self, ceremony: Ceremony) -> Paired:
        """Run a ceremony to its end.

        Raises:
            PairingError: it ended early.
            Exception: what the operator's front end or the allow list raised, where that was the reason.
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
        await self._part()
        return Paired(self._entry, self._met.known, self._replaced)

    async def _step(self, ceremony: Ceremony, action: Action) -> None:
        try:
            answer = await self._perform(action)
        except PairingError as error:
            ceremony.fail(error)
            return
        if isinstance(action, Receive):  # a signature may follow, and some keys sign slowly
            await self.pairing.blocking(ceremony.answer, answer)
        else:
            ceremony.answer(answer)

    async def _perform(self, action: Action) -> str | bool | None:
        match action:
            case Send(payload):
                await self.link.send(frames.data(payload))
                return None
            case Receive(patience):
                self._person_until = None
                timeouts = self.pairing.timeouts
                frame = await self.link.receive(
                    timeouts.person if patience == "person" else timeouts.message, PeerSilent
                )
                return frame.payload if isinstance(frame, frames.Data) else _end(frame)
            case Store():
                return await self._store(action)
            case AskCode(peer) | Decide(peer) | ShowCode(peer) | Confirm(peer):
                return await self._involve(action, await self._meet(peer))

    @abstractmethod
    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        """Do what *action* wants of the person here."""

    @abstractmethod
    async def _part(self) -> None:
        """Leave, so that nothing that is on its way gets lost."""

    async def _meet(self, peer: Peer) -> Met:
        if self._met is None:
            known = await self.pairing.blocking(self.pairing.allow_list.find, peer.public_key)
            self._met = Met(peer, known)
            self.operator.progress("introduced")
        return self._met

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Ask the person, and listen to the relay meanwhile: the other side must be silent, and may leave.

        Raises:
            PairingError: time is up, or something came.
        """
        loop = asyncio.get_running_loop()
        if self._person_until is None:  # all questions in a row share it: at the other side they are one wait
            self._person_until = loop.time() + self.pairing.timeouts.person
        asked, heard = asyncio.ensure_future(question), asyncio.ensure_future(self.link.receive())
        try:
            await asyncio.wait(
                {asked, heard}, timeout=self._person_until - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            if heard.done():
                frame = heard.result()
                raise InvalidPayload() if isinstance(frame, frames.Data) else _ending(frame)
            if not asked.done():
                raise TookTooLong()
            return asked.result()
        finally:
            for task in (asked, heard):
                task.cancel()
            await asyncio.gather(asked, heard, return_exceptions=True)

    async def _store(self, action: Store) -> bool:
        peer, pairing = action.peer, self.pairing
        entry = DeviceEntry.new(
            peer.public_key,
            peer.name,
            action.role,
            added_at=pairing.now(),
            added_by="handshake",
            permissions=self._permissions(),
        )
        replaced = self._replaced.device_id if self._replaced is not None else None

        def write() -> None:
            pairing.allow_list.add(entry, replacing=replaced)

        writing = asyncio.ensure_future(_await(pairing.blocking(write)))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # it can't be stopped half-way; so say truly whether it was done
            if not writing.cancelled() and writing.exception() is None:
                self.operator.progress("stored")
            raise
        except Exception as error:  # whatever a disk or a database can do: the other side is told, the caller gets it
            self._reason = error
            return False
        self._entry = entry
        self.operator.progress("stored")
        return True

    def _permissions(self) -> dict[str, Any]:
        return {}


async def _await(awaitable: Any) -> None:
    await awaitable


def _ending(frame: frames.Frame) -> PairingError:
    """What a frame means that is no payload, where only payloads may come."""
    if isinstance(frame, frames.Failed):
        return frame.error if isinstance(frame.error, _IN_SESSION) else RelayClosed()
    return PeerGone() if isinstance(frame, frames.Done) else RelayProtocolViolation()


def _end(frame: frames.Frame) -> NoReturn:
    raise _ending(frame)


@dataclass(kw_only=True)
class TargetDriver(Driver):
    """The target's end.

    Attributes:
        permissions: what the controller may do besides.
        replacing: device id of the one that is revoked in the same step; None asks, where one must go.
    """

    operator: TargetOperator
    permissions: dict[str, Any] = field(default_factory=dict)
    replacing: str | None = None

    def _permissions(self) -> dict[str, Any]:
        return self.permissions

    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        """A front end that can't ask raises; the other side is told no, and the caller gets that error."""
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
        raise PairingDeclined("What was typed had not six digits. Nothing was stored here; pair again.")

    async def _decide(self, met: Met) -> bool:
        self.operator.progress("verified")
        if await self._ask(self.operator.confirm_peer(met)) is not True:
            return False
        allow_list = self.pairing.allow_list
        entries = await self.pairing.blocking(allow_list.read)
        others = [e for e in entries if e.role == CONTROLLER and e.public_key != met.peer.public_key]
        if self.replacing is not None:
            self._replaced = _named(self.replacing, entries, met)
            others = [entry for entry in others if entry != self._replaced]
        limit = allow_list.controller_limit
        if len(others) < limit:
            return True
        if len(others) > limit or self.replacing is not None:
            raise ControllerLimitReached(
                f"This device takes {limit} controller{'s' if limit != 1 else ''} (maxControllers) and trusts {len(others)}. "
                f"Revoke {len(others) - limit + 1} of them first, then pair again. Nothing was stored."
            )
        chosen = await self._ask(self.operator.choose_replaced(met, others, limit))
        if chosen is None:
            return False
        self._replaced = _named(chosen, others, met)
        return True

    async def _part(self) -> None:
        with suppress(PairingError):  # the last message is on its way; whoever closes first may cut it off
            await self.link.receive(self.pairing.timeouts.farewell)


def _named(device_id: str, entries: Sequence[DeviceEntry], met: Met) -> DeviceEntry:
    """The one that is to go."""
    found = next((entry for entry in entries if entry.device_id == device_id), None)
    if found is None:
        raise DeviceNotFound(
            "The device that was to be replaced is not among those that may be. Nothing was stored; the command list shows them."
        )
    if found.public_key == met.peer.public_key:
        raise InvalidInput(
            "The device that was to be replaced is the very one that came. A known device is refreshed: pair again without "
            "naming it. Nothing was stored."
        )
    return found


@dataclass(kw_only=True)
class ControllerDriver(Driver):
    """The controller's end."""

    operator: ControllerOperator

    async def _involve(self, action: Action, met: Met) -> str | bool | None:
        if isinstance(action, ShowCode):
            self.operator.show_verification_code(action.code, met)
            return None
        self.operator.progress("agreed")
        question = self.operator.confirm_verified(met)
        try:
            if self.pairing.version == 1:  # nobody waits for the answer: a target of version 1 has left by now
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

    async def _part(self) -> None:
        if self.pairing.version == 2:  # the reference sends none
            with suppress(PairingError):
                await self.link.send(frames.done())
