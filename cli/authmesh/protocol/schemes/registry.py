"""The schemes that this version of amesh supports."""

from __future__ import annotations

from .base import Scheme
from .v1 import SchemeV1

#: The scheme of each version. No other place knows which versions exist.
SCHEMES: dict[str, Scheme] = {"1": SchemeV1()}
