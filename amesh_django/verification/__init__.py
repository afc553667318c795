"""From a Django request to a verified device, or to an error that says why not (design.md, decisions 1 and 2)."""

from .types import VerifiedDevice
from .verifier import Verifier

__all__ = ["VerifiedDevice", "Verifier"]
