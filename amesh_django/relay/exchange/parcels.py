"""Parcels: the events for one process, in as few published messages as possible."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from .base import Event, Ref

#: Characters of the frames in one message.
_MAX_CHARACTERS: Final = 256 * 1024

#: An event, the connection it goes to, and the caller that waits.
Mail = tuple[Ref, Event, asyncio.Future[bool]]
#: A message to publish: the process it goes to, its text, and the callers that wait.
Parcel = tuple[str, str, list[asyncio.Future[Any]]]


def pack(mail: Sequence[Mail]) -> list[Parcel]:
    """Return the messages to publish. The events for one process share a message, up to a size, and stay in order."""
    parcels: list[tuple[str, list[tuple[Any, ...]], list[asyncio.Future[Any]]]] = []
    open_parcels: dict[str, tuple[int, int]] = {}
    for to, event, future in mail:
        place, size = open_parcels.get(to.process, (-1, 0))
        if place < 0 or size + len(event.frame) > _MAX_CHARACTERS:
            place, size = len(parcels), 0
            parcels.append((to.process, [], []))
        open_parcels[to.process] = (place, size + len(event.frame))
        parcels[place][1].append((to.number, event.kind, event.about, *event.sender, event.frame))
        parcels[place][2].append(future)
    return [(process, json.dumps(events), futures) for process, events, futures in parcels]


def unpack(data: bytes) -> list[tuple[int, Event]]:
    """Return the events in a message, each with the number of the connection it goes to.

    Raises:
        ValueError: the message is not a parcel.
    """
    try:
        return [
            (number, Event(name, about, Ref(process, sender), frame))
            for number, name, about, process, sender, frame in json.loads(data)
        ]
    except TypeError as error:
        raise ValueError("not a list of events") from error
