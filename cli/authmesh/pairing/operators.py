"""The people at the two ends, as a front end plays them: what they are shown, and what they are asked.

Every question may be cancelled while it is open (the other side left, time is up, Ctrl-C); it must give way then. What is not
answered is no.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.pairing.codes import Peer

#: How far the pairing is: the relay is being dialled; it answered; the two sides are matched; who the other side is, is known; the
#: verification is done on this side; at the target, every other question is answered as well; the other side said yes; the peer is in the allow list; all is done.
Step = Literal[
    "connecting", "connected", "matched", "introduced", "verified", "decided", "agreed", "stored", "finished"
]


@dataclass(frozen=True, slots=True)
class Met:
    """The other side.

    Attributes:
        peer: its key, its device id, and its name, fit to be shown.
        known: its entry in the allow list, which will be refreshed; None for a stranger.
    """

    peer: Peer
    known: DeviceEntry | None


class Operator:
    """What both ends have."""

    def progress(self, step: Step) -> None:
        """A step was made."""


class TargetOperator(Operator, ABC):
    """The person at the target: shows the one-time code, types the verification code."""

    @abstractmethod
    def show_code(self, code: str, relay: str, seconds: float) -> None:
        """Show the one-time code; the relay has it now.

        Args:
            code: six digits.
            relay: its address.
            seconds: how long the code lives.
        """

    @abstractmethod
    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        """Ask for the six digits that the controller shows.

        Args:
            met: whom the code would let in. Show name and full device id.
            again: what was typed before was not six digits.

        Returns:
            what was typed; None to give up.
        """

    @abstractmethod
    async def confirm_peer(self, met: Met) -> bool:
        """The code was right: may this device be the controller? A front end that showed it before may just say yes."""

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        """There are as many controllers as there may be: which one is to go?

        Args:
            met: who would come.
            controllers: those that are there.
            limit: how many there may be.

        Returns:
            device id of one of them, or None for no.
        """
        return None


class ControllerOperator(Operator, ABC):
    """The person at the controller: shows the verification code, then looks at the target's screen."""

    @abstractmethod
    def show_verification_code(self, code: str, met: Met) -> None:
        """Show the six digits, which are to be typed on the target.

        Args:
            code: six digits.
            met: whose code it is. Show name and full device id.
        """

    async def confirm_verified(self, met: Met) -> bool:
        """The target is said to have accepted the code: does its own screen say so? Only a person can see that."""
        return False
