"""Warnings that the library logs while a command runs, shown as warnings of the command."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

#: The parent of all loggers of amesh, with and without Django.
LOGGER = "amesh_django"
_SHOWN_OTHERWISE = (LOGGER, "httpx", "httpcore")


class _WarningHandler(logging.Handler):
    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:  # an error is raised as well, and is shown then
            self._warn(record.getMessage())


@contextlib.contextmanager
def shown_warnings(warn: Callable[[str], None], *, owns_terminal: bool) -> Iterator[None]:
    """Inside the block, hand each warning that amesh logs to *warn*.

    Handlers that write to files or other places receive every record as usual.

    Args:
        warn: called with the text of each warning.
        owns_terminal: True if the process runs for one command only. Handlers that write to the terminal then leave out the records
            of amesh, so that no warning appears twice or between the lines of ``--json``.
    """
    ours, handler = logging.getLogger(LOGGER), _WarningHandler(warn)
    at_terminal = [
        other
        for other in (*logging.getLogger().handlers, *ours.handlers)
        if owns_terminal and getattr(other, "stream", None) in (sys.stdout, sys.stderr)
    ]
    ours.addHandler(handler)
    for other in at_terminal:
        other.addFilter(_is_foreign)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        for other in at_terminal:
            other.removeFilter(_is_foreign)


def _is_foreign(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] not in _SHOWN_OTHERWISE
