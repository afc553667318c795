"""The people at the two ends, as a front end implements them: what they are shown, and what they are asked.

Every question may be cancelled while it is open, because the other device left, time is up or someone pressed Ctrl-C; it must end
at once then. A question without an answer means no.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.pairing.codes import Peer

#: The steps of a pairing. ``connecting``: the relay is being connected to. ``connected``: the relay accepted the connection.
#: ``matched``: the relay has matched the two devices. ``introduced``: the peer is known. ``verified``: verification is done on this
#: device. ``decided``: on the target, every other question is answered as well. ``agreed``: the other device said yes. ``stored``:
#: the peer is in the allow list. ``finished``: the pairing is done.
Step = Literal[
    "connecting", "connected", "matched", "introduced", "verified", "decided", "agreed", "stored", "finished"
]


@dataclass(frozen=True, slots=True)
class Met:
    """The peer, as this device knows it.

    Attributes:
        peer: its key, its device ID, and its name, which is safe to show.
        known: its entry in the allow list, which will be updated; None if it has none.
    """

    peer: Peer
    known: DeviceEntry | None


class Operator:
    """The person at this device."""

    def progress(self, step: Step) -> None:
        """Note that a step was reached."""


class TargetOperator(Operator, ABC):
    """The person at the target, who is shown the one-time code and types the verification code."""

    @abstractmethod
    def show_code(self, code: str, relay: str, seconds: float) -> None:
        """Show the one-time code. The relay has it already.

        Args:
            code: six digits.
            relay: address of the relay.
            seconds: how long the code is valid.
        """

    @abstractmethod
    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        """Ask for the verification code that the controller shows.

        Args:
            met: the device that the code would accept as controller. Show its name and its full device ID.
            again: True if the previous answer did not have six digits.

        Returns:
            the text that was typed, or None to give up.
        """

    @abstractmethod
    async def confirm_peer(self, met: Met) -> bool:
        """Ask whether this device may be the controller, after the code was right.

        A front end that has shown the device with the code may return True without asking.
        """

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        """Ask which controller to revoke, because the list has as many as its limit allows.

        Args:
            met: the device that would be added.
            controllers: the controllers in the list.
            limit: the most controllers that the list may have.

        Returns:
            the device ID of one of them, or None for no.
        """
        return None


class ControllerOperator(Operator, ABC):
    """The person at the controller, who is shown the verification code and then looks at the screen of the target."""

    @abstractmethod
    def show_verification_code(self, code: str, met: Met) -> None:
        """Show the verification code, which must be typed on the target.

        Args:
            code: six digits.
            met: the target. Show its name and its full device ID.
        """

    async def confirm_verified(self, met: Met) -> bool:
        """Ask whether the screen of the target says that the code was right.

        The message that says so has come over the relay; only a person can compare it with the screen.
        """
        return False
