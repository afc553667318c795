"""Pair this device with another one over a relay that neither of them trusts.

A pairing runs from the outside in: :mod:`.client` connects to the relay through :mod:`.wire` and has it match the two devices;
:mod:`.driver` then runs a ceremony, and carries its actions to the relay, to the person (:mod:`.operators`) and to the allow list.
The ceremony itself (:mod:`.ceremony`) does no I/O. :mod:`.bootstrap` pairs without a person at the target, by a token.
"""

from .ceremony.machine import Ceremony, Party
from .client import Pairing
from .driver import Paired
from .operators import ControllerOperator, Met, Operator, Step, TargetOperator
from .options import Blocking, PairingOptions, Timeouts

__all__ = [
    "Blocking",
    "Ceremony",
    "ControllerOperator",
    "Met",
    "Operator",
    "Paired",
    "Pairing",
    "PairingOptions",
    "Party",
    "Step",
    "TargetOperator",
    "Timeouts",
]
