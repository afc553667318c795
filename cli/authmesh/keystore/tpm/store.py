"""The TPM 2.0 key store: P-256 keys that are created in the TPM and never leave it (TPM 2.0 Library, Part 1, 23 and 27; Part 3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from authmesh.files.storage import atomic_write, make_private_directory
from authmesh.protocol.errors import BackendUnavailable, KeyStoreError, StorageError, WrongPin
from authmesh.protocol.keys import device_id, verify_signature
from authmesh.protocol.seal import KEY_MATERIAL_BYTES

from ..base import NEW_IDENTITY, OTHER_BACKEND, CreatedKey, KeyStore, check_alias
from .blob import KeyFile, damaged, key_file_text, parse_key_file
from .connection import Tpm
from .link import link_to
from .objects import key_name, make_key, parent_key, sign_digest, unseal
from .pin import check_pin
from .place import check_place, load_library

T = TypeVar("T")

_FIRST: Final = b"amesh: the first signature of a new key"


def unavailable(tcti: str) -> KeyStoreError | None:
    """Return the error that prevents keys in this TPM, or None if keys can be created."""
    try:
        check_place(tcti)
        load_library()
        link_to(tcti).run(_derive_parent)
    except KeyStoreError as error:
        return error
    return None


def _derive_parent(tpm: Tpm) -> None:
    with parent_key(tpm):
        pass


class TpmKeyStore(KeyStore):
    """Keys in ``keys/<alias>.tpm``, wrapped by the TPM and useless without it.

    The parent is a primary key of the owner hierarchy. It is derived from the TPM's seed whenever it is needed, so it takes no
    persistent handle, and nothing needs to be cleaned up. The seal secret is sealed data in the same file, under the same parent.

    Args:
        folder: the ``keys`` folder of a device directory.
        tcti: the TPM, as returned by :func:`.place.tcti_name`. It gets no command before a key is used.
        pin: called when a key with a PIN is first used; raises PinRequired if there is no PIN.
    """

    backend: ClassVar[str] = "tpm2"
    in_hardware: ClassVar[bool] = True
    protection: ClassVar[str] = (
        "The key is protected by hardware. It was created in the TPM of this machine, and no copy of any file lets another machine "
        "use it."
    )

    def __init__(self, folder: Path, tcti: str, pin: Callable[[], str]) -> None:
        self._folder = folder
        self._tcti = tcti
        self._pin = pin
        self._files: dict[str, KeyFile] = {}
        self._secrets: dict[str, bytes] = {}
        self._pins: dict[str, bytes] = {}

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """Create a P-256 key whose alias is its device ID.

        Args:
            pin: PIN that each signature needs; None for a key without a PIN.

        Raises:
            InvalidInput: the PIN is not valid.
            KeyStoreError: the TPM cannot create or use a key; nothing remains of it.
            StorageError: writing failed; nothing remains of the key.
        """
        auth = None if pin is None else check_pin(pin)
        secret = os.urandom(KEY_MATERIAL_BYTES)
        file = self._run(lambda tpm: make_key(tpm, auth, secret))
        alias = device_id(file.public_key)
        make_private_directory(self._folder)
        atomic_write(self._path(alias), key_file_text(file))
        self._files[alias] = file
        if auth is not None:
            self._pins[alias] = auth
        try:
            if not verify_signature(file.public_key, _FIRST, self.sign(alias, _FIRST)):
                raise KeyStoreError(
                    "The TPM does not sign with the key that it created. The key was deleted.", hint=OTHER_BACKEND
                )
            if self.seal_secret(alias) != secret:
                raise KeyStoreError(
                    "The TPM does not return the secret that it sealed. The key was deleted.", hint=OTHER_BACKEND
                )
        except BaseException:
            self.delete(alias)
            raise
        return CreatedKey(alias, file.public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        """Return the ECDSA P-256 signature of SHA-256(message): ``r || s``, low-S, 64 bytes.

        Raises:
            PinRequired, WrongPin: the key has a PIN, which is missing or wrong.
            KeyStoreError: there is no such key, or the TPM cannot use it.
        """
        file = self._file(alias)
        pin = self._pin_of(alias, file)
        digest = hashlib.sha256(message).digest()
        try:
            return self._run(lambda tpm: sign_digest(tpm, file, digest, pin))
        except WrongPin:
            self._pins.pop(alias, None)
            raise

    def public_key(self, alias: str) -> bytes:
        """Return the public key, 33 bytes. It needs no TPM, because the TPM uses no private part with a different public part."""
        return self._file(alias).public_key

    def seal_secret(self, alias: str) -> bytes:
        """Return the key material for sealing the allow list, 32 bytes. It needs no PIN and is encrypted on the bus."""
        found = self._secrets.get(alias)
        if found is None:
            file = self._file(alias)
            found = self._run(lambda tpm: unseal(tpm, file))
            if len(found) != KEY_MATERIAL_BYTES:
                raise damaged()
            self._secrets[alias] = found
        return found

    def delete(self, alias: str) -> None:
        """Delete the file of the key. That deletes the key, because the TPM stores nothing of it."""
        path = self._path(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be deleted ({error.strerror}).", hint="Check the owner and permissions of the folder."
            ) from None
        file = self._files.pop(alias, None)
        self._secrets.pop(alias, None)
        self._pins.pop(alias, None)
        if file is not None:
            link_to(self._tcti).drop(key_name(file))

    def _path(self, alias: str) -> Path:
        return self._folder / f"{check_alias(alias)}.tpm"

    def _run(self, work: Callable[[Tpm], T]) -> T:
        try:
            return link_to(self._tcti).run(work)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"This key is in a TPM 2.0 that cannot be used. {error.message}", hint=error.hint
            ) from None

    def _file(self, alias: str) -> KeyFile:
        found = self._files.get(alias)
        if found is None:
            path = self._path(alias)
            try:
                found = self._files[alias] = parse_key_file(path.read_text("utf-8"))
            except FileNotFoundError:
                raise KeyStoreError(
                    f"There is no key file {path}.",
                    hint=("Restore it. Or to make a new identity, run ", NEW_IDENTITY, "."),
                ) from None
            except UnicodeDecodeError:
                raise damaged() from None
            except OSError as error:
                raise KeyStoreError(
                    f"The key file {path} cannot be read ({error}).", hint="Check its owner and permissions."
                ) from None
        return found

    def _pin_of(self, alias: str, file: KeyFile) -> bytes | None:
        if not file.has_pin:
            return None
        if alias not in self._pins:
            self._pins[alias] = check_pin(self._pin())
        return self._pins[alias]
