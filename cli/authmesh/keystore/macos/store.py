"""The two key stores of macOS: the Secure Enclave, and the key chain (Apple: "Keychain services", "Keys").

The package docstring has the theory of operation.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, ClassVar, Final

from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.errors import InvalidInput, KeyStoreError, StorageError
from authmesh.protocol.keys import verify_signature
from authmesh.protocol.seal import KEY_MATERIAL_BYTES

from ..base import NEW_IDENTITY, OTHER_BACKEND, CreatedKey, KeyStore, check_alias
from .chain import KeyChain, load_library

_FIRST: Final = b"amesh: the first signature of a new key"


def missing() -> KeyStoreError | None:
    """Return the error if the library cannot be loaded, or None. The key chain is not accessed."""
    try:
        load_library()
    except KeyStoreError as error:
        return error
    return None


class MacKeyStore(KeyStore):
    """The common part of both stores. The seal secret is a generic password in the key chain, not a file.

    Args:
        folder: the ``keys`` folder of a device directory; nothing is written there.

    Attributes:
        chain: the key chain that has the keys and secrets.
    """

    chain: ClassVar[KeyChain]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = ForkSafeLock()
        self._process = os.getpid()
        self._keys: dict[str, tuple[Any, bytes]] = {}
        self._secrets: dict[str, bytes] = {}

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """Create a P-256 key with a random alias. The store does not support PINs."""
        if pin is not None:
            raise InvalidInput(
                f"The key store {self.backend} does not support PINs. No key was created.",
                hint="Use --backend tpm2 for a key with a PIN.",
            )
        alias = "amesh_" + secrets.token_hex(16)
        secret = os.urandom(KEY_MATERIAL_BYTES)
        try:
            public_key = self.chain.public_key(self.chain.make_key(alias))
            self.chain.keep_secret(alias, secret)
            if self.public_key(alias) != public_key or not verify_signature(
                public_key, _FIRST, self.sign(alias, _FIRST)
            ):
                raise KeyStoreError(
                    "macOS does not sign with the key that it created. The key was deleted.", hint=OTHER_BACKEND
                )
            if self.seal_secret(alias) != secret:
                raise KeyStoreError(
                    "macOS does not return the secret that it stored. The key was deleted.", hint=OTHER_BACKEND
                )
        except BaseException:
            with contextlib.suppress(KeyStoreError, StorageError):  # the first error is the one to raise
                self.delete(alias)
            raise
        return CreatedKey(alias, public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        key = self._key(alias)[0]
        try:
            return self.chain.sign(key, message)
        except KeyStoreError:
            self._keys.pop(alias, None)  # if the key chain was locked in the meantime, the key must be looked up again
            raise

    def public_key(self, alias: str) -> bytes:
        return self._key(alias)[1]

    def seal_secret(self, alias: str) -> bytes:
        """Return the key material for sealing the allow list, 32 bytes.

        If the key chain has none, it is read from ``keys/<alias>.hmac``, where the reference keeps it. The key chain is read first, so
        that someone who can only write files cannot substitute another secret.

        Raises:
            KeyStoreError: there is no secret, it is truncated, or macOS returned an error.
        """
        found = self._secrets.get(alias)
        if found is None:
            path = self._path(alias)
            with self._lock:
                found = self._secrets.get(alias)
                if found is None:
                    found = self._secrets[alias] = self._find_secret(alias, path)
        return found

    def delete(self, alias: str) -> None:
        """Delete the key, the seal secret, and a file of the reference.

        Raises:
            KeyStoreError: the alias is not valid, or macOS returned an error.
            StorageError: deleting the file failed.
        """
        path = self._path(alias)
        self._keys.pop(alias, None)
        self._secrets.pop(alias, None)
        self.chain.remove_keys(alias)
        self.chain.remove_secrets(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be deleted ({error.strerror}).", hint="Check the owner and permissions of the folder."
            ) from None

    def _path(self, alias: str) -> Path:
        return self._folder / f"{check_alias(alias)}.hmac"

    def _find_secret(self, alias: str, path: Path) -> bytes:
        found, place = self.chain.find_secret(alias), "the key chain"
        if found is None:
            found, place = _read(path), str(path)
        if len(found) != KEY_MATERIAL_BYTES:
            raise KeyStoreError(
                f"The secret of the seal in {place} is empty or truncated: it has {len(found)} bytes instead of "
                f"{KEY_MATERIAL_BYTES}.",
                hint=("Restore it from a backup. Or to make a new identity, run ", NEW_IDENTITY, "."),
            )
        return found

    def _key(self, alias: str) -> tuple[Any, bytes]:
        check_alias(alias)
        if self._process != os.getpid():  # the references of the parent process are not valid
            self._keys, self._process = {}, os.getpid()
        found = self._keys.get(alias)
        if found is None:
            with self._lock:
                found = self._keys.get(alias)
                if found is None:
                    key = self.chain.find_key(alias)
                    found = self._keys[alias] = (key, self.chain.public_key(key))
        return found


class SecureEnclaveKeyStore(MacKeyStore):
    """Keys in the Secure Enclave. The data protection key chain has the references to them.

    The program must be signed with the entitlement ``keychain-access-groups`` and run in the session of a user.
    """

    backend: ClassVar[str] = "secure-enclave"
    in_hardware: ClassVar[bool] = True
    protection: ClassVar[str] = (
        "The key is protected by hardware. It was created in the Secure Enclave of this Mac, and no copy of any file lets another "
        "machine use it."
    )
    chain: ClassVar[KeyChain] = KeyChain(enclave=True)


class KeychainKeyStore(MacKeyStore):
    """Keys in the key chain of the user (usually "login"), encrypted under its password."""

    backend: ClassVar[str] = "keychain"
    in_hardware: ClassVar[bool] = False
    protection: ClassVar[str] = (
        "The key is protected by software only. Anyone who knows the password of this user's key chain can copy it, and any program "
        "that runs in the same Python can use it."
    )
    chain: ClassVar[KeyChain] = KeyChain(enclave=False)


def unavailable(kind: type[MacKeyStore]) -> KeyStoreError | None:
    """Return the error that prevents new keys in a store, or None. To find out, a key is created and removed."""
    try:
        load_library()
        kind.chain.probe()
    except KeyStoreError as error:
        return error
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise KeyStoreError(
            "The key chain has no secret of the seal for this key, which belongs to the user and the Mac that created it.",
            hint=("Use that user on that Mac. Or to make a new identity, run ", NEW_IDENTITY, "."),
        ) from None
    except OSError as error:
        raise KeyStoreError(
            f"The secret of the seal {path} cannot be read ({error.strerror}).", hint="Check its owner and permissions."
        ) from None
