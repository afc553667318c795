"""What a server tells a device beside its answers: that it asks for another key."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from authmesh.protocol.check import ROTATE_HEADER, ROTATE_REQUESTED

from .origins import Origin

logger = logging.getLogger("amesh_django.client")

#: The device IDs and origins for which the warning was logged.
_told: set[tuple[str, Origin]] = set()


def heed(headers: Mapping[str, str], asked: Origin, device_id: str) -> None:
    """Log a warning if a server asks this device to replace its key: once for each server and key in a process.

    Args:
        headers: those of a response to a signed request.
        asked: origin of the request.
        device_id: the device that signed it.
    """
    if headers.get(ROTATE_HEADER) != ROTATE_REQUESTED or (device_id, asked) in _told:
        return
    _told.add((device_id, asked))
    logger.warning(
        "The server %s asks this device (%s) to replace its key. Run amesh rotate. If this device did not enroll at that server, run "
        "amesh rotate URL with the address of its amesh_django.urls, such as https://api.example/amesh/.",
        asked[1],
        device_id,
    )
