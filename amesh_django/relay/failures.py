"""How the relay logs its own bugs."""

from __future__ import annotations

import logging

logger = logging.getLogger("amesh_django.relay")


def report(error: BaseException) -> None:
    """Log the place of a bug. The text of the error is left out, because it may hold what clients sent."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "unknown place"
    logger.error(
        "The relay failed on a message: %s at %s. Other connections are not affected. Please report it.",
        type(error).__name__,
        place,
    )
