"""What applying one event would change, before it is known whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amesh_django.models import Device

#: A row, the kind of its event in the audit log, and the columns that change.
Update = tuple[Device, str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The effect of one event.

    Attributes:
        updates: the rows that change.
        new: the row of a device that is added; None if none is.
        why: why the event, or a part of it, is not applied; empty if all of it is.
        is_noted: False if it does not become the last word of the hub about the key.
        word: columns of that word that change, beside what every event says.
    """

    updates: Sequence[Update] = ()
    new: Device | None = None
    why: str = ""
    is_noted: bool = True
    word: Mapping[str, Any] = field(default_factory=dict)


#: Nothing changes, because all is as the event says.
NOTHING = Plan()
