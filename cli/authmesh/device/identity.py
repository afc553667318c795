"""The identity file of a device: ``identity.json`` (protocol.md §4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from authmesh.protocol.errors import DirectoryError, InvalidInput
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key

FILE_VERSION = "2.0.0"
#: Controllers that may be trusted at the same time if ``identity.json`` does not say how many.
DEFAULT_CONTROLLER_LIMIT = 1
_MEMBERS = (
    "version",
    "deviceId",
    "keyAlias",
    "publicKey",
    "friendlyName",
    "createdAt",
    "storageBackend",
    "maxControllers",
)
#: The member that holds the passphrase in files of old versions. It is moved to the passphrase file, and is never a part of
#: an Identity, because identities are shown and logged.
LEGACY_PASSPHRASE = "passphrase"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a device.

    Attributes:
        device_id: ``am_…``, derived from the public key.
        key_alias: name of the key in its key store. Defaults to the device ID in files that have no alias.
        public_key: 33 bytes.
        friendly_name: name of the device for people.
        created_at: ISO 8601, UTC.
        storage_backend: ``secure-enclave``, ``keychain``, ``tpm2`` or ``encrypted-file``.
        max_controllers: controllers that may be trusted at the same time; None if the file does not say.
        extra: members of the file that this version does not know. They are written back unchanged.
    """

    device_id: str
    key_alias: str
    public_key: bytes
    friendly_name: str
    created_at: str
    storage_backend: str
    max_controllers: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def controller_limit(self) -> int:
        """``maxControllers``, or the default if the file does not have it."""
        return DEFAULT_CONTROLLER_LIMIT if self.max_controllers is None else self.max_controllers

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Parse the text of ``identity.json``.

        Raises:
            DirectoryError: not JSON, a member is missing or wrong, or the device ID does not belong to the public key.
        """
        try:
            value = json.loads(text)
            texts = [value[name] for name in ("deviceId", "friendlyName", "createdAt", "storageBackend")]
            texts.insert(1, value.get("keyAlias", texts[0]))
            public_key = decode_public_key(value["publicKey"])
            limit = value.get("maxControllers")
            if not all(isinstance(item, str) for item in texts):
                raise InvalidInput("A member is not text.")
            if limit is not None and (type(limit) is not int or limit < 1):
                raise InvalidInput("maxControllers is not an integer greater than or equal to 1.")
            if device_id(public_key) != texts[0]:
                raise InvalidInput("The device ID does not belong to the public key.")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = error.message if isinstance(error, InvalidInput) else "It is not the JSON of an identity."
            raise DirectoryError(f"identity.json is damaged. {reason}", hint="Restore it from a backup.") from None
        extra = {name: item for name, item in value.items() if name not in (*_MEMBERS, LEGACY_PASSPHRASE)}
        return cls(texts[0], texts[1], public_key, texts[2], texts[3], texts[4], limit, extra)

    def to_json(self) -> dict[str, Any]:
        """Return the object of the file, with its members in the order of protocol.md §4."""
        value: dict[str, Any] = {
            "version": FILE_VERSION,
            "deviceId": self.device_id,
            "keyAlias": self.key_alias,
            "publicKey": encode_public_key(self.public_key),
            "friendlyName": self.friendly_name,
            "createdAt": self.created_at,
            "storageBackend": self.storage_backend,
        }
        if self.max_controllers is not None:
            value["maxControllers"] = self.max_controllers
        return {**value, **self.extra}
