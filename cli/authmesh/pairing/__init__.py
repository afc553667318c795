"""FIRST: pair this device with another one over a relay that neither trusts: the ceremony, both ends, and who drives it."""

from .ceremony.machine import Ceremony, Party
from .client import Blocking, Pairing, Timeouts
from .driver import Paired
from .operators import ControllerOperator, Met, Operator, Step, TargetOperator

__all__ = [
    "Blocking",
    "Ceremony",
    "ControllerOperator",
    "Met",
    "Operator",
    "Paired",
    "Pairing",
    "Party",
    "Step",
    "TargetOperator",
    "Timeouts",
]
