"""People, screens and devices for tests that pair over sockets."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from authmesh.device import Identity, LocalDevice
from authmesh.pairing import ControllerOperator, Met, Paired, Pairing, Step, TargetOperator, Timeouts
from authmesh.protocol import keys
from authmesh.protocol.allow_list import DeviceEntry
from tests.pairing.pairing_world import MOMENT, MemoryAllowList, party

#: Long enough for a slow machine, short enough to fail in time.
QUICK = Timeouts(connect=20, relay=20, peer=20, message=20, person=20, farewell=0.5)


class MemoryDevice:
    """A device in memory."""

    def __init__(self, name: str = "device") -> None:
        self._key = keys.load_private_key(keys.generate_private_key())
        public = keys.public_key_bytes(self._key)
        own = keys.device_id(public)
        self.identity = Identity(own, own, public, name, "2026-01-01T00:00:00.000Z", "encrypted-file")

    def sign(self, message: bytes) -> bytes:
        return keys.sign(self._key, message)

    def seal_secret(self) -> bytes:
        return bytes(32)


@dataclass
class Room:
    """The desk at which both people sit, so that the code on one screen can be typed on the other."""

    one_time_code: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    verification_code: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    target_is_verified: bool = False


@dataclass
class Typist(TargetOperator):
    """The person at the target.

    Attributes:
        types: returns the text typed, from the code on the screen of the controller.
        says: the answer to the question whether the device may be the controller.
        replaces: device ID of the controller to revoke, or None.
        waits_at: the question that this person never answers.
    """

    room: Room
    types: Callable[[str], str | None] = str
    says: bool = True
    replaces: Callable[[Sequence[DeviceEntry]], str | None] = lambda controllers: None
    waits_at: str = ""
    steps: list[Step] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    met: Met | None = None
    cancelled: bool = False

    def progress(self, step: Step) -> None:
        self.steps.append(step)

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        self.asked.append("show_code")
        self.room.one_time_code.set_result(code)

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        self.met = met
        await self._question("again" if again else "enter")
        return self.types(await asyncio.shield(self.room.verification_code))

    async def confirm_peer(self, met: Met) -> bool:
        await self._question("confirm")
        self.room.target_is_verified = self.says
        return self.says

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        await self._question("replace")
        return self.replaces(controllers)

    async def _question(self, name: str) -> None:
        self.asked.append(name)
        if name == self.waits_at:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise


@dataclass
class Looker(ControllerOperator):
    """The person at the controller, who looks at the screen of the target.

    Attributes:
        says: the answer. Defaults to what the screen of the target says.
        waits: True to never answer.
    """

    room: Room
    says: bool | None = None
    waits: bool = False
    steps: list[Step] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    met: Met | None = None

    def progress(self, step: Step) -> None:
        self.steps.append(step)

    def show_verification_code(self, code: str, met: Met) -> None:
        self.met = met
        self.asked.append("show")
        self.room.verification_code.set_result(code)

    async def confirm_verified(self, met: Met) -> bool:
        self.asked.append("confirm")
        if self.waits:
            await asyncio.Event().wait()
        return self.room.target_is_verified if self.says is None else self.says


Outcome = Paired | BaseException


class Two:
    """A target and a controller that use the same relay."""

    def __init__(self, url: str, version: int = 2, **options: Any) -> None:
        self.room = Room()
        self.typist, self.looker = Typist(self.room), Looker(self.room)
        self.lists = MemoryAllowList(), MemoryAllowList(9)
        self.devices = MemoryDevice("server"), MemoryDevice("laptop")
        self.target, self.controller = [
            Pairing(
                relay=url,
                device=cast("LocalDevice", device),
                allow_list=allow_list,
                **{"version": version, "timeouts": QUICK, "now": lambda: MOMENT, **options},
            )
            for device, allow_list in zip(self.devices, self.lists, strict=True)
        ]
        self.permissions: dict[str, Any] = {}
        self.tasks: dict[str, asyncio.Task[Paired]] = {}

    def change(self, name: str, **changes: Any) -> None:
        """Set other options for one side."""
        setattr(self, name, replace(getattr(self, name), **changes))

    def clock(self, name: str, seconds: float) -> None:
        self.change(name, now=lambda: MOMENT + dt.timedelta(seconds=seconds))

    def listen(self) -> asyncio.Task[Paired]:
        task = asyncio.ensure_future(self.target.listen(self.typist, permissions=self.permissions))
        self.tasks["target"] = task
        return task

    def invite(self, code: str) -> asyncio.Task[Paired]:
        task = asyncio.ensure_future(self.controller.invite(code, self.looker))
        self.tasks["controller"] = task
        return task

    async def meet(self) -> None:
        """Start both sides."""
        listening = self.listen()
        await asyncio.wait({listening, self.room.one_time_code}, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            listening.result()
        self.invite(self.room.one_time_code.result())

    async def ends(self) -> tuple[Outcome, Outcome]:
        """Return the results of both sides."""
        target, controller = await asyncio.gather(
            self.tasks["target"], self.tasks["controller"], return_exceptions=True
        )
        for future in (self.room.one_time_code, self.room.verification_code):
            future.cancel()
        return target, controller

    async def pair(self) -> tuple[Outcome, Outcome]:
        await self.meet()
        return await self.ends()

    @property
    def nothing_stored(self) -> bool:
        return not any(allow_list.entries for allow_list in self.lists)

    @property
    def no_controller(self) -> bool:
        """True if neither device has stored anything."""
        return not any(e.role == "controller" for allow_list in self.lists for e in allow_list.entries)


#: A delay of a person.
SHORT = 0.3


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test, and fail if it hangs."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await coroutine

    asyncio.run(limited())


def is_error(outcome: Outcome, kind: type[BaseException]) -> None:
    assert type(outcome) is kind, f"{kind.__name__} was expected, not {outcome!r}"


def entry(name: str, role: Any = "controller") -> DeviceEntry:
    return DeviceEntry.new(party().public_key, name, role, added_at=MOMENT)


async def fails(two: Two, kind: type[BaseException], *, code: str = "482916", ends: str = "both") -> str:
    """Check that each side fails with an error of this kind while connecting, and return the message of the target."""
    target = (await asyncio.gather(two.listen(), return_exceptions=True))[0] if ends != "controller" else None
    if target is not None:
        is_error(target, kind)
    if ends != "target":
        controller = (await asyncio.gather(two.invite(code), return_exceptions=True))[0]
        is_error(controller, kind)
    assert two.nothing_stored
    return str(target)
