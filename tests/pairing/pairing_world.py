"""Two devices that pair in memory, with simulated people and a wire that a test can put any payload into."""

from __future__ import annotations

import datetime as dt
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from authmesh.device.allow_list import AllowList, limit_reached
from authmesh.pairing.ceremony.controller import controller_v1, controller_v2
from authmesh.pairing.ceremony.machine import (
    Action,
    AskCode,
    Ceremony,
    Confirm,
    Decide,
    Party,
    Receive,
    Script,
    Send,
    ShowCode,
    Store,
)
from authmesh.pairing.ceremony.target import target_v1, target_v2
from authmesh.protocol import keys
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.pairing.errors import PeerGone, PeerSilent

MOMENT = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)


def party(name: str = "device", *, private: bytes | None = None, now: dt.datetime = MOMENT) -> Party:
    """Return a party with a key of its own."""
    key = keys.load_private_key(private or keys.generate_private_key())
    return Party(keys.public_key_bytes(key), name, lambda message: keys.sign(key, message), lambda: now)


class MemoryAllowList(AllowList):
    """An allow list in memory."""

    def __init__(self, limit: int = 1) -> None:
        self.controller_limit = limit
        self.entries: list[DeviceEntry] = []
        self.broken: Exception | None = None

    def read(self) -> list[DeviceEntry]:
        return list(self.entries)

    def find(self, public_key: bytes) -> DeviceEntry | None:
        return next((entry for entry in self.entries if entry.public_key == public_key), None)

    def add(self, entry: DeviceEntry, *, replacing: str | None = None) -> None:
        if self.broken is not None:
            raise self.broken
        if replacing is not None:
            self.revoke(replacing)
        others = [other for other in self.entries if other.public_key != entry.public_key]
        if entry.role == CONTROLLER and sum(o.role == CONTROLLER for o in others) >= self.controller_limit:
            raise limit_reached(self.controller_limit)
        self.entries = [*others, entry]

    def add_all(self, entries: Sequence[DeviceEntry], *, even_revoked: bool = False) -> list[DeviceEntry]:
        raise NotImplementedError

    def revoke_all(self, device_ids: Sequence[str], *, reason: str = "", by: str = "") -> list[DeviceEntry]:
        revoked = [self.get(device_id) for device_id in device_ids]
        self.entries = [entry for entry in self.entries if entry not in revoked]
        return revoked

    def update_permissions_of(
        self, device_ids: Sequence[str], update: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> list[DeviceEntry]:
        raise NotImplementedError


@dataclass
class Side:
    """One side of a pairing: its ceremony, its person, its allow list.

    Attributes:
        name: ``target`` or ``controller``.
        script: the ceremony, not started.
        types: returns the text typed at the target, from the code on the screen of the controller.
        decides: the answer at the target after the code was right.
        confirms: returns the answer at the controller, from whether the screen of the target says "verified".
        can_store: False if the disk fails.
        dies_at: number of the action before which this side dies.
    """

    name: str
    script: Script
    types: Callable[[str], str] = str
    decides: bool = True
    confirms: Callable[[bool], bool] = bool
    can_store: bool = True
    dies_at: int | None = None

    ceremony: Ceremony = field(init=False)
    inbox: deque[str] = field(default_factory=deque, init=False)
    done: list[Action] = field(default_factory=list, init=False)
    stored: list[Store] = field(default_factory=list, init=False)
    error: AmeshError | None = field(default=None, init=False)
    shown: str | None = field(default=None, init=False)
    verified: bool = field(default=False, init=False)
    dead: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.ceremony = Ceremony(self.script)

    @property
    def over(self) -> bool:
        return self.dead or self.ceremony.action is None

    @property
    def well(self) -> bool:
        return not self.dead and self.ceremony.peer is not None

    @property
    def keys(self) -> list[bytes]:
        """The devices that this side has stored."""
        return [store.peer.public_key for store in self.stored]


class Wire:
    """An honest relay. Malicious relays override methods, and may put any payload into either inbox at any time."""

    target: Side
    controller: Side
    #: True if the relay reports when a side has left.
    tells = True

    def start(self) -> None:
        """Prepare for both sides, after they were created."""

    def from_target(self, payload: str) -> None:
        self.controller.inbox.append(payload)

    def from_controller(self, payload: str) -> None:
        self.target.inbox.append(payload)

    def idle(self) -> bool:
        """Handle that both sides wait. Return True if that changed something."""
        return False


def sides(version: int = 2, *, target: Party | None = None, controller: Party | None = None) -> tuple[Side, Side]:
    """Return two honest sides of one version."""
    t, c = target or party("server"), controller or party("laptop")
    if version == 2:
        return Side("target", target_v2(t)), Side("controller", controller_v2(c))
    return Side("target", target_v1(t)), Side("controller", controller_v1(c))


def play(target: Side, controller: Side, wire: Wire | None = None) -> None:
    """Run the pairing until neither side can go on. A side that still waits then gets no answer."""
    wire = wire or Wire()
    wire.target, wire.controller = target, controller
    wire.start()
    for _ in range(10_000):
        moved = False
        for side, other in ((target, controller), (controller, target)):
            if not side.over:
                moved |= _move(side, other, wire)
        if moved or wire.idle():
            continue
        waiting = [side for side in (target, controller) if not side.over]
        if not waiting:
            return
        left = PeerGone() if len(waiting) == 1 else PeerSilent()
        for side in waiting:
            _try(side, functools.partial(side.ceremony.fail, left))
    raise AssertionError("this pairing never ends")


def _try(side: Side, step: Callable[[], None]) -> None:
    try:
        step()
    except AmeshError as error:
        side.error = error


def _move(side: Side, other: Side, wire: Wire) -> bool:
    action = side.ceremony.action
    assert action is not None
    if side.dies_at == len(side.done):
        side.dead = True
        return True
    if wire.tells and isinstance(action, AskCode | Decide) and (other.dead or other.error):
        _try(side, lambda: side.ceremony.fail(PeerGone()))  # the error cancels the open question
        return True
    answer: str | bool | None = None
    match action:
        case Send():
            pass
        case Receive():
            if not side.inbox:
                return False
            answer = side.inbox.popleft()
        case ShowCode():
            side.shown = action.code
        case AskCode():
            if other.shown is None:
                return False
            answer = side.types(other.shown)
        case Decide():
            side.verified = side.decides
            answer = side.decides
        case Confirm():
            answer = side.confirms(other.verified)
        case Store():
            answer = side.can_store
            if answer:
                side.stored.append(action)
    side.done.append(action)
    _try(side, lambda: side.ceremony.answer(answer))
    if isinstance(action, Send):
        (wire.from_target if side.name == "target" else wire.from_controller)(action.payload)
    return True
