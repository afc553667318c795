"""The identity file of a device (protocol.md §4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from authmesh.protocol.errors import DirectoryError, InvalidInput
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key

FILE_VERSION = "2.0.0"
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
#: Where old versions kept the passphrase. It is moved to its file, and never carried along: an identity is shown and logged.
LEGACY_PASSPHRASE = "passphrase"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is.

    Attributes:
        device_id: ``am_…``, that of the public key.
        key_alias: name of the key in its store; files without one mean the device id.
        public_key: 33 bytes.
        friendly_name: what people call it.
        created_at: ISO 8601, UTC.
        storage_backend: ``secure-enclave``, ``keychain``, ``tpm2`` or ``encrypted-file``.
        max_controllers: how many controllers may be trusted at a time; None is the default of 1.
        extra: members of the file that this version does not know; kept as they are.
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
        """``maxControllers``, 1 where the file does not say."""
        return 1 if self.max_controllers is None else self.max_controllers

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Read ``identity.json``.

        Raises:
            DirectoryError: not JSON, a member missing or wrong, or a device id that is not that of the key.
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
                raise InvalidInput("maxControllers is not a number from 1.")
            if device_id(public_key) != texts[0]:
                raise InvalidInput("The device id is not that of the public key.")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, InvalidInput) else "not the JSON of an identity."
            raise DirectoryError(f"identity.json is damaged: {reason} Restore it from a backup.") from None
        extra = {name: item for name, item in value.items() if name not in (*_MEMBERS, LEGACY_PASSPHRASE)}
        return cls(texts[0], texts[1], public_key, texts[2], texts[3], texts[4], limit, extra)

    def to_json(self) -> dict[str, Any]:
        """The object of the file, members in the order of protocol.md §4."""
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
