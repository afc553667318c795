"""The check address of a server: where a device asks whether it is known, and what it is told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .encoding import format_time, parse_time
from .errors import InvalidInput

#: Below the root of a server that includes ``amesh_django.urls`` there.
CHECK_PATH: Final = "/amesh/check"


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """What a server says to a device that it knows.

    Attributes:
        device_id: whose signature was verified.
        friendly_name: what the device is called there. It comes from elsewhere: clean it before it is shown.
        role: ``controller``.
        permissions: what the device may do there besides.
        time: the clock of the server.
    """

    device_id: str
    friendly_name: str
    role: str
    permissions: Mapping[str, Any] = field(default_factory=dict)
    time: dt.datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "deviceId": self.device_id,
            "friendlyName": self.friendly_name,
            "role": self.role,
            "permissions": dict(self.permissions),
            "time": format_time(self.time) if self.time is not None else None,
        }

    @classmethod
    def from_json(cls, value: Any) -> CheckAnswer:
        """Read a body. Members that are not known are ignored.

        Raises:
            InvalidInput: it is not that of a check address.
        """
        try:
            texts = [value[name] for name in ("deviceId", "friendlyName", "role")]
            permissions = value.get("permissions") or {}
            if not all(isinstance(text, str) for text in texts) or not isinstance(permissions, Mapping):
                raise InvalidInput("A member has the wrong type.")
            moment = value.get("time")
            return cls(
                texts[0], texts[1], texts[2], permissions, parse_time(moment) if isinstance(moment, str) else None
            )
        except (KeyError, TypeError, AttributeError, InvalidInput):
            raise InvalidInput("This is not the answer of a check address.") from None
