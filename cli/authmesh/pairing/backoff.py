"""How long to wait before something is tried again: twice as long each time, and never at the same moment as everybody else."""

from __future__ import annotations

import random


class Backoff:
    """Waiting times, in seconds.

    Args:
        first: the first, before chance has its say.
        longest: where they stop growing.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self) -> float:
        """The next one: between half and one and a half times what it would be without chance."""
        seconds, self._next = self._next, min(2 * self._next, self._longest)
        return seconds * (0.5 + random.random())  # noqa: S311 -- it spreads load, it hides nothing

    def reset(self) -> None:
        """It went well: begin anew."""
        self._next = self._first
