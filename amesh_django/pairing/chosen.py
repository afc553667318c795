"""What a person has chosen for a device before it comes, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from authmesh.device.grants import NOTHING, Grant, granted


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the device gets.

    Attributes:
        permissions: names of permissions.
        scopes: scopes of the device itself.
        groups: groups that it joins.
        user: primary key of the Django user as whom it acts, as text; empty for none.
        days: days after which its key expires; None for no limit beside ``MAX_KEY_AGE_DAYS``.
        approved: True if it does not wait for approval.
        replaces: device ID of the controller that is revoked if the list is full; empty for none.
    """

    permissions: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    user: str = ""
    days: int | None = None
    approved: bool = False
    replaces: str = ""

    def granted(self) -> dict[str, Any]:
        """Return the permissions of the device, as its entry has them."""
        return granted({}, Grant(self.permissions, self.scopes), NOTHING)

    def to_json(self) -> str:
        """Return it as the row has it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Chosen:
        """Return what :meth:`to_json` has written."""
        found: dict[str, Any] = json.loads(text)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        return cls(**values)
