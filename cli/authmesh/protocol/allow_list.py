"""The allow list as a value: its entries and its sealed JSON document (protocol.md §5)."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, cast

from .encoding import format_time
from .errors import AllowListIntegrityFailure, InvalidInput
from .keys import decode_public_key, device_id, encode_public_key
from .seal import seal, seal_form

Role = Literal["controller", "target"]
AddedBy = Literal["handshake", "manual"]
CONTROLLER: Final = "controller"
TARGET: Final = "target"
ROLES: tuple[Role, ...] = (CONTROLLER, TARGET)
DOCUMENT_VERSION = "2.0.0"

_RESTORE = "Restore the list from a backup."
_MEMBERS = ("deviceId", "publicKey", "friendlyName", "addedAt", "addedBy", "role", "permissions")


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """One trusted device.

    Attributes:
        device_id: ``am_`` and 16 characters.
        public_key: 33 bytes, compressed point.
        friendly_name: name that the peer or the operator chose. Clean it before you show it.
        added_at: ISO 8601 in UTC with milliseconds, ending with ``Z``.
        added_by: ``handshake`` (pairing) or ``manual``.
        role: a ``controller`` may authenticate to this device, a ``target`` may not.
        permissions: a value for each name, such as ``{"shell": True}``.
        extra: members of the file that this version does not know; they are kept unchanged.
    """

    device_id: str
    public_key: bytes
    friendly_name: str
    added_at: str
    added_by: AddedBy
    role: Role
    permissions: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def new(
        cls,
        public_key: bytes,
        friendly_name: str,
        role: Role,
        *,
        added_at: dt.datetime,
        added_by: AddedBy = "manual",
        permissions: Mapping[str, Any] | None = None,
    ) -> DeviceEntry:
        """Return an entry for a key, with the device ID of that key.

        Raises:
            InvalidInput: the key, the role or the time is not valid.
        """
        if role not in ROLES:
            raise InvalidInput(f"The role must be controller or target, not {role!r}.")
        return cls(
            device_id(public_key),
            public_key,
            friendly_name,
            format_time(added_at),
            added_by,
            role,
            dict(permissions or {}),
        )

    @classmethod
    def from_json(cls, value: Any) -> DeviceEntry:
        """Return the entry of one object of ``devices``. Without a ``role``, as in older files, it is a controller.

        Raises:
            InvalidInput: a member is missing or has the wrong type.
        """
        if not isinstance(value, dict):
            raise InvalidInput("An entry of the allow list is not an object.", hint=_RESTORE)
        texts: dict[str, Any] = {
            name: value.get(name, "handshake" if name == "addedBy" else None) for name in _MEMBERS[:5]
        }
        permissions = value.get("permissions") or {}
        role = value.get("role", CONTROLLER)
        if not all(isinstance(text, str) for text in (*texts.values(), role)) or not isinstance(permissions, dict):
            raise InvalidInput(
                "An entry of the allow list has a member that is missing or has the wrong type.", hint=_RESTORE
            )
        return cls(
            device_id=texts["deviceId"],
            public_key=decode_public_key(texts["publicKey"]),
            friendly_name=texts["friendlyName"],
            added_at=texts["addedAt"],
            added_by=cast("AddedBy", texts["addedBy"]),
            role=cast("Role", role),
            permissions=permissions,
            extra={name: item for name, item in value.items() if name not in _MEMBERS},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object for the file, with the members in the order of protocol.md §5."""
        value: dict[str, Any] = {
            "deviceId": self.device_id,
            "publicKey": encode_public_key(self.public_key),
            "friendlyName": self.friendly_name,
            "addedAt": self.added_at,
            "addedBy": self.added_by,
            "role": self.role,
        }
        if self.permissions:
            value["permissions"] = dict(self.permissions)
        return {**value, **self.extra}


def seal_document(
    entries: Iterable[DeviceEntry], *, key_material: bytes, device_id: str, updated_at: dt.datetime
) -> dict[str, Any]:
    """Return the sealed document for the file.

    Args:
        entries: the devices, in order.
        key_material: at least 32 bytes from the key store.
        device_id: ID of the device that the list belongs to.
        updated_at: time of the change, with a time zone.

    Raises:
        InvalidInput: *key_material* is too short.
    """
    document: dict[str, Any] = {
        "version": DOCUMENT_VERSION,
        "devices": [entry.to_json() for entry in entries],
        "updatedAt": format_time(updated_at),
    }
    return {**document, "hmac": seal(document, key_material, device_id)}


def _finite(text: str) -> float | None:
    """Return a number, or None if it is too large for one: the reference writes that as ``null``."""
    number = float(text)
    return number if math.isfinite(number) else None


def _no_json(text: str) -> NoReturn:
    """Reject ``NaN`` and ``Infinity``, which Python accepts but JSON does not have."""
    raise ValueError(text)


def open_document(text: str, *, key_material: bytes, device_id: str) -> tuple[list[DeviceEntry], bool]:
    """Parse and verify a sealed document.

    Returns:
        the entries, and True if the document should be resealed (older form of the seal, or an entry without a role).

    Raises:
        AllowListIntegrityFailure: *text* is not JSON or not an allow list, or the seal does not match.
        InvalidInput: *key_material* is too short.
    """
    try:
        document = json.loads(text, parse_float=_finite, parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise AllowListIntegrityFailure(
            "The allow list is not JSON. Nothing was changed.", hint=_RESTORE, reason="not_json"
        ) from None
    form = seal_form(document, key_material, device_id) if isinstance(document, dict) else None
    if form is None:
        raise AllowListIntegrityFailure(
            "The allow list does not match its seal: it was changed outside amesh, or belongs to another device. All requests are "
            "rejected. Nothing was changed.",
            hint=_RESTORE,
            reason="seal_mismatch",
        )
    try:
        if not isinstance(document["devices"], list):
            raise InvalidInput("The member devices of the allow list is not a list.", hint=_RESTORE)
        entries = [DeviceEntry.from_json(value) for value in document["devices"]]
    except InvalidInput as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason="invalid_entry") from None
    return entries, form == "legacy" or any("role" not in value for value in document["devices"])
