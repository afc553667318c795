"""The check address of a server, which tells a device its entry in the allow list."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .encoding import format_time, parse_time
from .errors import InvalidInput

#: Path of the check address, relative to the place where a server includes ``amesh_django.urls``.
CHECK_PATH: Final = "/amesh/check"
#: Header of a response that says when the key of the device expires.
EXPIRES_HEADER: Final = "X-Amesh-Expires"
#: Seconds before that time from which the header is sent: 30 days.
EXPIRES_SOON_SECONDS: Final = 30 * 86400
#: Header of a response that asks the device to replace its key, and its value.
ROTATE_HEADER: Final = "X-Amesh-Rotate"
ROTATE_REQUESTED: Final = "requested"


@dataclass(frozen=True, slots=True)
class CheckAnswer:
    """The answer to a device that may authenticate.

    Attributes:
        device_id: ID of the device whose signature was verified.
        friendly_name: name of the device on the server. Clean it before you show it.
        role: ``controller``.
        permissions: permissions of the device on the server.
        time: time on the server, or None if the server did not send it.
        server: device ID of the server, or None if the server did not send it. It is not signed.
    """

    device_id: str
    friendly_name: str
    role: str
    permissions: Mapping[str, Any] = field(default_factory=dict)
    time: dt.datetime | None = None
    server: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object for the body of the answer."""
        return {
            "deviceId": self.device_id,
            "friendlyName": self.friendly_name,
            "role": self.role,
            "permissions": dict(self.permissions),
            "time": format_time(self.time) if self.time is not None else None,
            "server": self.server,
        }

    @classmethod
    def from_json(cls, value: Any) -> CheckAnswer:
        """Return the answer in a body. Unknown members are ignored.

        Raises:
            InvalidInput: *value* is not the answer of a check address.
        """
        try:
            texts = [value[name] for name in ("deviceId", "friendlyName", "role")]
            permissions = value.get("permissions") or {}
            if not all(isinstance(text, str) for text in texts) or not isinstance(permissions, Mapping):
                raise InvalidInput("A member has the wrong type.")
            moment, server = value.get("time"), value.get("server")
            return cls(
                texts[0],
                texts[1],
                texts[2],
                permissions,
                parse_time(moment) if isinstance(moment, str) else None,
                server if isinstance(server, str) else None,
            )
        except (KeyError, TypeError, AttributeError, InvalidInput):
            raise InvalidInput("This is not the answer of a check address.") from None
