"""Versions are schemes: what ``v`` of the header selects (design.md, decision 11)."""

from __future__ import annotations

from .base import Scheme
from .v1 import SchemeV1

#: Version → scheme; the only place that knows which versions there are.
SCHEMES: dict[str, Scheme] = {"1": SchemeV1()}
