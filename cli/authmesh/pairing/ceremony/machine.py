"""What a ceremony wants from whoever drives it, and the machine that hands that out, one want at a time.

A ceremony is a generator: it yields what is to be done next and gets the answer. So the order in which things are asked, sent and
stored is the order of the lines in :mod:`.target` and :mod:`.controller`, and there is no other. It does no I/O: time, keys and
people come in from outside.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from authmesh.protocol.allow_list import Role
from authmesh.protocol.keys import generate_private_key, load_private_key, public_key_bytes
from authmesh.protocol.pairing.codes import Peer
from authmesh.protocol.pairing.errors import OwnKey, PairingError

#: Whose turn it is while a message is awaited: a program's, or the person's at the other side.
Patience = Literal["message", "person"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send this payload to the other side. Answer: None, once it is on its way."""

    payload: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a payload of the other side, as long as *patience* says. Answer: the payload."""

    patience: Patience = "message"


@dataclass(frozen=True, slots=True)
class AskCode:
    """Target: ask the operator for the verification code that the controller shows. Answer: what was typed."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Decide:
    """Target: the code was right; ask all that is still open, such as which controller is to go. Answer: True to go on."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class ShowCode:
    """Controller: show the verification code, to be typed on the target. Answer: None."""

    peer: Peer
    code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Confirm:
    """Controller: ask the operator whether the target's own screen says that it is verified. Answer: True to go on."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Store:
    """Trust the peer in that role. Answer: True once it is in the allow list, False if it could not be stored."""

    peer: Peer
    role: Role


Action = Send | Receive | AskCode | Decide | ShowCode | Confirm | Store
Script = Generator[Action, Any, Peer]


@dataclass(frozen=True, slots=True)
class Party:
    """This side.

    Attributes:
        public_key: permanent key, 33 bytes.
        name: friendly name, clean.
        sign: signs with the permanent key, 64 bytes.
        now: the clock.
    """

    public_key: bytes
    name: str
    sign: Callable[[bytes], bytes]
    now: Callable[[], dt.datetime]

    def check(self, peer: Peer) -> Peer:
        """*peer*, if it is somebody else.

        Raises:
            OwnKey: it has this device's key.
        """
        if peer.public_key == self.public_key:
            raise OwnKey()
        return peer


@dataclass(frozen=True, slots=True)
class Ephemeral:
    """A key for one pairing: private (32 bytes) and public (33 bytes)."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls) -> Ephemeral:
        """A new one, from the operating system's random source."""
        return cls.of(generate_private_key())

    @classmethod
    def of(cls, private: bytes) -> Ephemeral:
        """The one of a private key."""
        return cls(private, public_key_bytes(load_private_key(private)))


def tell(payload: str) -> Generator[Action, Any, None]:
    """Send what nothing depends on any more: if it does not arrive, this side ends as it would have ended."""
    with suppress(PairingError):
        yield Send(payload)


class Ceremony:
    """One side of one pairing, from the moment the relay has matched the two.

    ``action`` is what it wants now; :meth:`answer` gives that and moves on to the next, :meth:`fail` says that it can't be had.
    ``action`` is None when it is over: well if ``peer`` is set, badly otherwise. After an error it is over and stays so.

    Args:
        script: one of :mod:`.target` or :mod:`.controller`, not started.
    """

    def __init__(self, script: Script) -> None:
        self._script: Script | None = script
        self.peer: Peer | None = None
        self.action: Action | None = None
        self._move(lambda: next(script))

    def answer(self, value: str | bool | None = None) -> None:
        """Give what :attr:`action` asks for.

        Raises:
            PairingError: the other side, or the operator, has ended the ceremony.
        """
        action, script = self.action, self._script
        if action is None or script is None:
            raise PairingError("This pairing is over already. Pair again.")
        if not isinstance(value, _ANSWERS[type(action)]):
            raise TypeError(f"{type(action).__name__} is not answered by a {type(value).__name__}.")
        self._move(lambda: script.send(value))

    def fail(self, error: PairingError) -> None:
        """What :attr:`action` asks for can't be had. Mostly the ceremony is over then; where it goes on, there is a next action.

        Args:
            error: why, such as PeerGone.

        Raises:
            PairingError: that, or what it means at this point of the ceremony.
        """
        script = self._script
        if self.action is None or script is None:
            raise error
        self._move(lambda: script.throw(error))

    def _move(self, step: Callable[[], Action]) -> None:
        self.action = None
        try:
            self.action = step()
        except StopIteration as end:
            self.peer, self._script = end.value, None
        except Exception:
            self._script = None
            raise


_ANSWERS: Final[dict[type, type]] = {
    Send: type(None),
    Receive: str,
    AskCode: str,
    Decide: bool,
    ShowCode: type(None),
    Confirm: bool,
    Store: bool,
}
