"""Waiting times between attempts: twice as long each time, and random, so that many devices do not try at the same moment.

Ours, because the libraries for this retry a function, while the callers here wait for several things at once and reset on success.
"""

from __future__ import annotations

import random


class Backoff:
    """Return waiting times, in seconds.

    Args:
        first: the first waiting time, before randomization.
        longest: the longest waiting time, before randomization.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self) -> float:
        """Return the next waiting time, multiplied by a random factor between 0.5 and 1.5."""
        seconds, self._next = self._next, min(2 * self._next, self._longest)
        return seconds * (0.5 + random.random())  # noqa: S311 -- it spreads load, it hides nothing

    def reset(self) -> None:
        """Start again with the first waiting time, after a success."""
        self._next = self._first
