"""What would fill the log is said once a minute by each process."""

from __future__ import annotations

import time

_SECONDS = 60.0

_said: dict[str, float] = {}


def rarely(what: str) -> bool:
    """Return True if this process has not said something in the last minute.

    Args:
        what: stands for what is said.
    """
    now = time.monotonic()
    if now - _said.get(what, float("-inf")) < _SECONDS:
        return False
    _said[what] = now
    return True


def reset() -> None:
    """Forget what was said."""
    _said.clear()
