"""The two key stores of macOS: the Secure Enclave, and the key chain (Apple: "Keychain services", "Keys").

**This has not run on a Mac yet.** It is written against Apple's documented API and tested against a stand-in of those calls.

Names. The reference gives its key one fixed name for each user. Here each key gets a name of its own, drawn at random, which
``identity.json`` keeps and which never changes: so two device directories of a user, one that was moved aside, or one that was
restored can't take each other's key away. What lies under a name is removed before a key is made there, all the same.

Forks. Apple's frameworks don't survive a fork without exec: a child that goes on with what its parent had loaded may be ended
by macOS. A server that loads the application before it forks must not use the key before; the child gets its key anew.
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

from ..base import CreatedKey, KeyStore, check_alias
from .chain import KeyChain, load_library

_FIRST: Final = b"amesh: the first signature of a new key"


def missing() -> str | None:
    """What is missing here, as far as it can be said without asking the key chain; None if nothing is."""
    try:
        load_library()
    except KeyStoreError as error:
        return str(error)
    return None


def unavailable(backend: str) -> str | None:
    """Why no key can be made in *backend* here, with the fix; None if one can. A key is made and removed to see that."""
    try:
        load_library()
        KeyChain(enclave=backend == SecureEnclaveKeyStore.backend).probe()
    except KeyStoreError as error:
        text = str(error).removesuffix(".")
        return text[:1].lower() + text[1:]
    return None


class MacKeyStore(KeyStore):
    """What the two have in common. The seal secret is a generic password beside the key, not a file.

    Args:
        folder: the ``keys`` folder of a device directory; nothing is written there.
    """

    _chain: ClassVar[KeyChain]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = ForkSafeLock()
        self._process = os.getpid()
        self._keys: dict[str, tuple[Any, bytes]] = {}
        self._secrets: dict[str, bytes] = {}

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """See :meth:`KeyStore.create`. The alias is drawn at random."""
        if pin is not None:
            raise InvalidInput("A key of macOS has no PIN of ours. A PIN needs a TPM: init --backend tpm2.")
        alias = "amesh_" + secrets.token_hex(16)
        secret = os.urandom(KEY_MATERIAL_BYTES)
        try:
            public_key = self._chain.public_key(self._chain.make_key(alias))
            self._chain.keep_secret(alias, secret)
            if self.public_key(alias) != public_key or not verify_signature(
                public_key, _FIRST, self.sign(alias, _FIRST)
            ):
                raise KeyStoreError("macOS does not sign with the key that it made. Choose another: init --backend.")
            if self.seal_secret(alias) != secret:
                raise KeyStoreError("macOS does not give back what it kept. Choose another: init --backend.")
        except BaseException:
            with contextlib.suppress(KeyStoreError, StorageError):  # why it failed matters, not that this does, too
                self.delete(alias)
            raise
        return CreatedKey(alias, public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        """See :meth:`KeyStore.sign`."""
        key = self._key(alias)[0]
        try:
            return self._chain.sign(key, message)
        except KeyStoreError:
            self._keys.pop(alias, None)  # a key chain that was closed meanwhile wants its key looked up again
            raise

    def public_key(self, alias: str) -> bytes:
        """See :meth:`KeyStore.public_key`."""
        return self._key(alias)[1]

    def seal_secret(self, alias: str) -> bytes:
        """See :meth:`KeyStore.seal_secret`. The reference's ``keys/<alias>.hmac`` is read where the key chain has none.

        The key chain goes first: whoever can write files only must not be able to put another secret in its place.
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
        """See :meth:`KeyStore.delete`. Key, seal secret and a file of the reference go.

        Raises:
            KeyStoreError: also where macOS refuses.
        """
        path = self._path(alias)
        self._keys.pop(alias, None)
        self._secrets.pop(alias, None)
        self._chain.remove_keys(alias)
        self._chain.remove_secrets(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(f"{path} can't be removed ({error.strerror}). Check owner and permissions.") from None

    def _path(self, alias: str) -> Path:
        return self._folder / f"{check_alias(alias)}.hmac"

    def _find_secret(self, alias: str, path: Path) -> bytes:
        found, where = self._chain.find_secret(alias), "the key chain"
        if found is None:
            found, where = _read(path), str(path)
        if len(found) != KEY_MATERIAL_BYTES:
            raise KeyStoreError(
                f"The secret of the seal in {where} has {len(found)} bytes, not {KEY_MATERIAL_BYTES}: it is empty or truncated. "
                "Restore it from a backup, or make a new identity: init --force."
            )
        return found

    def _key(self, alias: str) -> tuple[Any, bytes]:
        check_alias(alias)
        if self._process != os.getpid():  # the parent's reference is good for nothing here
            self._keys, self._process = {}, os.getpid()
        found = self._keys.get(alias)
        if found is None:
            with self._lock:
                found = self._keys.get(alias)
                if found is None:
                    key = self._chain.find_key(alias)
                    found = self._keys[alias] = (key, self._chain.public_key(key))
        return found


class SecureEnclaveKeyStore(MacKeyStore):
    """Keys in the Secure Enclave; the data protection key chain has the reference to them.

    Needs a program that is signed with the entitlement ``keychain-access-groups``, in a session of a user.
    """

    backend: ClassVar[str] = "secure-enclave"
    protection: ClassVar[str] = (
        "hardware protection: it was made in this Mac's Secure Enclave, and no copy of any file lets another machine use it"
    )
    _chain: ClassVar[KeyChain] = KeyChain(enclave=True)


class KeychainKeyStore(MacKeyStore):
    """Keys in the user's key chain (usually "login"), encrypted under its password."""

    backend: ClassVar[str] = "keychain"
    protection: ClassVar[str] = (
        "software protection: whoever knows the password of this user's key chain can copy the key to another machine, and any "
        "program that runs in the same Python may use it"
    )
    _chain: ClassVar[KeyChain] = KeyChain(enclave=False)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise KeyStoreError(
            "The key chain has no secret of the seal for this key. It belongs to the user and the Mac that made it: go back there, "
            "or make a new identity: init --force."
        ) from None
    except OSError as error:
        raise KeyStoreError(
            f"The secret of the seal {path} can't be read ({error.strerror}). Check its owner and permissions."
        ) from None
