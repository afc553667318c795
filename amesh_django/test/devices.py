"""Throw-away devices: a key in memory, made in a moment, good for nothing but tests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from authmesh.device import Identity, LocalDevice
from authmesh.files.storage import atomic_write, json_text, make_private_directory
from authmesh.keystore.encrypted_file import Argon2Cost, encrypt_key_file
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, Role
from authmesh.protocol.encoding import format_time
from authmesh.protocol.keys import device_id, generate_private_key, load_private_key, public_key_bytes, sign
from authmesh.protocol.seal import hkdf_sha256

PASSPHRASE = "throw-away"  # noqa: S105
#: The default cost takes a tenth of a second and 64 MiB, which throw-away keys are not worth.
CHEAP_ARGON2 = Argon2Cost(t=1, m=8, p=1)


class EphemeralDevice:
    """A device whose key lives in memory only. Signs like a :class:`~authmesh.device.LocalDevice`.

    Args:
        name: friendly name.
        private_key: 32 bytes; None makes a new one.

    Attributes:
        identity: who it is.
    """

    def __init__(self, name: str = "test device", *, private_key: bytes | None = None) -> None:
        self._private_key = private_key or generate_private_key()
        self._key = load_private_key(self._private_key)
        public_key = public_key_bytes(self._key)
        name_of_key = device_id(public_key)
        created = format_time(dt.datetime.now(dt.UTC))
        self.identity = Identity(name_of_key, name_of_key, public_key, name, created, "encrypted-file")

    def sign(self, message: bytes) -> bytes:
        """``r || s``, low-S, 64 bytes."""
        return sign(self._key, message)

    def seal_secret(self) -> bytes:
        """The key material for the seal of an allow list, 32 bytes."""
        return hkdf_sha256(self._private_key, salt=b"amesh-hmac-material-v1", info=self.identity.key_alias.encode())

    def entry(self, role: Role = CONTROLLER, *, permissions: Mapping[str, Any] | None = None) -> DeviceEntry:
        """What stands in an allow list that trusts this device."""
        return DeviceEntry.new(
            self.identity.public_key,
            self.identity.friendly_name,
            role,
            added_at=dt.datetime.now(dt.UTC),
            permissions=permissions,
        )

    def write(self, path: Path, *, max_controllers: int | None = None) -> LocalDevice:
        """Make a device directory with this key, as a real one but for a key file that opens at once.

        Args:
            path: the directory; made where it is missing.
            max_controllers: how many controllers it takes; None is the default of 1.

        Returns:
            the device of that directory.

        Raises:
            StorageError: the disk refuses.
        """
        self.identity = replace(self.identity, max_controllers=max_controllers)
        make_private_directory(path)
        make_private_directory(path / "keys")
        atomic_write(path / ".passphrase", PASSPHRASE, mode=0o400)
        key_file = encrypt_key_file(self._private_key, PASSPHRASE, CHEAP_ARGON2)
        atomic_write(path / "keys" / f"{self.identity.key_alias}.key.json", key_file)
        atomic_write(path / "identity.json", json_text(self.identity.to_json()))
        return LocalDevice(path, environ={})
