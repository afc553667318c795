"""Throw-away devices for tests: a key in memory, created in a moment."""

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

__all__ = ["EphemeralDevice"]

PASSPHRASE = "throw-away"  # noqa: S105
#: The default cost takes a tenth of a second and 64 MiB, which a test does not need.
CHEAP_ARGON2 = Argon2Cost(t=1, m=8, p=1)


class EphemeralDevice:
    """A device whose key is in memory only. It signs like a :class:`~authmesh.device.LocalDevice`.

    Args:
        name: friendly name.
        private_key: 32 bytes. Defaults to a new key.

    Attributes:
        identity: the identity of the device.
    """

    def __init__(self, name: str = "test device", *, private_key: bytes | None = None) -> None:
        self._private_key = private_key or generate_private_key()
        self._key = load_private_key(self._private_key)
        public_key = public_key_bytes(self._key)
        name_of_key = device_id(public_key)
        created = format_time(dt.datetime.now(dt.UTC))
        self.identity = Identity(name_of_key, name_of_key, public_key, name, created, "encrypted-file")

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: ``r || s``, low-S, 64 bytes."""
        return sign(self._key, message)

    def seal_secret(self) -> bytes:
        """Return the key material for the seal of an allow list, 32 bytes."""
        return hkdf_sha256(self._private_key, salt=b"amesh-hmac-material-v1", info=self.identity.key_alias.encode())

    def entry(self, role: Role = CONTROLLER, *, permissions: Mapping[str, Any] | None = None) -> DeviceEntry:
        """Return the entry of this device for an allow list.

        Args:
            role: ``controller`` or ``target``.
            permissions: name → value.
        """
        return DeviceEntry.new(
            self.identity.public_key,
            self.identity.friendly_name,
            role,
            added_at=dt.datetime.now(dt.UTC),
            permissions=permissions,
        )

    def write(self, path: Path, *, max_controllers: int | None = None) -> LocalDevice:
        """Create a device directory with this key. The Argon2 parameters of its key file are cheap, so that it opens at once.

        Args:
            path: the directory. Created if it does not exist.
            max_controllers: maximum number of controllers. Defaults to 1.

        Returns:
            The device of that directory.

        Raises:
            StorageError: the directory cannot be written.
        """
        self.identity = replace(self.identity, max_controllers=max_controllers)
        make_private_directory(path)
        make_private_directory(path / "keys")
        atomic_write(path / ".passphrase", PASSPHRASE, mode=0o400)
        key_file = encrypt_key_file(self._private_key, PASSPHRASE, CHEAP_ARGON2)
        atomic_write(path / "keys" / f"{self.identity.key_alias}.key.json", key_file)
        atomic_write(path / "identity.json", json_text(self.identity.to_json()))
        return LocalDevice(path, environ={})
