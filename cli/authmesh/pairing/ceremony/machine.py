"""The actions of a ceremony, and the machine that yields them one at a time.

A ceremony is a generator: it yields the next action and receives the answer. So the order in which things are asked, sent and stored
is the order of the lines in :mod:`.target` and :mod:`.controller`. A ceremony does no I/O: time, keys and people are passed in.
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

#: The cause of a wait for a message: the program on the other device, or the person at it.
Patience = Literal["message", "person"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a payload to the other device. The answer is None, once the payload is on its way."""

    payload: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a payload of the other device. The answer is the payload."""

    patience: Patience = "message"


@dataclass(frozen=True, slots=True)
class AskCode:
    """On the target, ask the operator for the verification code that the controller shows. The answer is the text typed."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Decide:
    """On the target, ask all other questions after the code was right, such as which controller to replace.

    The answer is True to go on.
    """

    peer: Peer


@dataclass(frozen=True, slots=True)
class ShowCode:
    """On the controller, show the verification code, which must be typed on the target. The answer is None."""

    peer: Peer
    code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Confirm:
    """On the controller, ask the operator whether the screen of the target says that it is verified.

    The answer is True to go on.
    """

    peer: Peer


@dataclass(frozen=True, slots=True)
class Store:
    """Trust the peer in a role. The answer is True once the peer is in the allow list, False if it could not be stored."""

    peer: Peer
    role: Role


Action = Send | Receive | AskCode | Decide | ShowCode | Confirm | Store
Script = Generator[Action, Any, Peer]


@dataclass(frozen=True, slots=True)
class Party:
    """This device, as a ceremony needs it.

    Attributes:
        public_key: permanent key, 33 bytes.
        name: friendly name, safe to show.
        sign: returns a signature made with the permanent key, 64 bytes.
        now: the clock.
    """

    public_key: bytes
    name: str
    sign: Callable[[bytes], bytes]
    now: Callable[[], dt.datetime]

    def check(self, peer: Peer) -> Peer:
        """Return *peer* if it is another device.

        Raises:
            OwnKey: *peer* has the key of this device.
        """
        if peer.public_key == self.public_key:
            raise OwnKey()
        return peer


@dataclass(frozen=True, slots=True)
class Ephemeral:
    """A key pair for one pairing: private key (32 bytes) and public key (33 bytes)."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls) -> Ephemeral:
        """Return a new key pair from the random source of the operating system."""
        return cls.of(generate_private_key())

    @classmethod
    def of(cls, private: bytes) -> Ephemeral:
        """Return the key pair of a private key."""
        return cls(private, public_key_bytes(load_private_key(private)))


def tell(payload: str) -> Generator[Action, Any, None]:
    """Send a payload that nothing depends on: an error while sending it does not change how the ceremony ends."""
    with suppress(PairingError):
        yield Send(payload)


class Ceremony:
    """One side of one pairing, from the moment the relay has matched the two devices.

    Perform :attr:`action` and pass the result to :meth:`answer`, or the error to :meth:`fail`; both move on to the next action. When
    ``action`` is None, the ceremony is over: it succeeded if ``peer`` is set. After an error, it stays over.

    Args:
        script: a generator of :mod:`.target` or :mod:`.controller`, not started.
    """

    def __init__(self, script: Script) -> None:
        self._script: Script | None = script
        self.peer: Peer | None = None
        self.action: Action | None = None
        self._move(lambda: next(script))

    def answer(self, value: str | bool | None = None) -> None:
        """Pass the answer to :attr:`action`, and move on to the next action.

        Raises:
            PairingError: the other device, or the operator, has ended the ceremony.
        """
        action, script = self.action, self._script
        if action is None or script is None:
            raise PairingError("This pairing is already over.", hint="Pair again.")
        if not isinstance(value, _ANSWERS[type(action)]):
            raise TypeError(f"A {type(value).__name__} is not an answer to {type(action).__name__}.")
        self._move(lambda: script.send(value))

    def fail(self, error: PairingError) -> None:
        """Pass the error of :attr:`action`. The ceremony usually ends with it; if it goes on, there is a next action.

        Args:
            error: the reason, such as PeerGone.

        Raises:
            PairingError: *error*, or the error that it means at this point of the ceremony.
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
