"""The TPM 2.0 key store: P-256 keys that are made in the TPM and never leave it (TPM 2.0 Library, Part 1, 23 and 27; Part 3)."""

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

from ..base import CreatedKey, KeyStore, check_alias
from .blob import KeyFile, damaged, key_file_text, parse_key_file
from .connection import Tpm
from .link import link_to
from .objects import key_name, make_key, parent_key, sign_digest, unseal
from .pin import check_pin
from .place import check_place, load_library

T = TypeVar("T")

_FIRST: Final = b"amesh: the first signature of a new key"


def unavailable(tcti: str) -> str | None:
    """Why there is no TPM here that keys can be made in, with the fix; None if there is one."""
    try:
        check_place(tcti)
        load_library()
        link_to(tcti).run(_derive_parent)
    except KeyStoreError as error:
        text = str(error)
        return text[:1].lower() + text[1:] if text.startswith("The ") else text
    return None


def _derive_parent(tpm: Tpm) -> None:
    with parent_key(tpm):
        pass


class TpmKeyStore(KeyStore):
    """Keys in ``keys/<alias>.tpm``: what the TPM wrapped, good for nothing without it.

    The parent is a primary key of the owner hierarchy, derived from the TPM's seed whenever it is needed: no persistent handle is
    spent, nothing needs to be cleaned up. The seal secret is sealed data beside the key, under the same parent.

    Args:
        folder: the ``keys`` folder of a device directory.
        tcti: where the TPM is. It is not asked before a key is used.
        pin: called when a key that has a PIN is first used; raises PinRequired where there is none.
    """

    backend: ClassVar[str] = "tpm2"
    protection: ClassVar[str] = (
        "hardware protection: it was made in this machine's TPM, and no copy of any file lets another machine use it"
    )

    def __init__(self, folder: Path, tcti: str, pin: Callable[[], str]) -> None:
        self._folder = folder
        self._tcti = tcti
        self._pin = pin
        self._files: dict[str, KeyFile] = {}
        self._secrets: dict[str, bytes] = {}
        self._pins: dict[str, bytes] = {}

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """See :meth:`KeyStore.create`. The alias is the device id.

        Args:
            pin: asked for each signature from then on; None asks for none.

        Raises:
            InvalidInput: not a PIN.
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
                    "The TPM does not sign with the key that it made. Choose another back end: init --backend."
                )
            if self.seal_secret(alias) != secret:
                raise KeyStoreError(
                    "The TPM does not give back what it sealed. Choose another back end: init --backend."
                )
        except BaseException:
            self.delete(alias)
            raise
        return CreatedKey(alias, file.public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        """See :meth:`KeyStore.sign`.

        Raises:
            PinRequired, WrongPin: the key has a PIN, and it is not known, or wrong.
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
        """See :meth:`KeyStore.public_key`. Needs no TPM; the TPM lets no private part be used with another public one."""
        return self._file(alias).public_key

    def seal_secret(self, alias: str) -> bytes:
        """See :meth:`KeyStore.seal_secret`. It needs no PIN, and crosses the bus encrypted."""
        found = self._secrets.get(alias)
        if found is None:
            file = self._file(alias)
            found = self._run(lambda tpm: unseal(tpm, file))
            if len(found) != KEY_MATERIAL_BYTES:
                raise damaged()
            self._secrets[alias] = found
        return found

    def delete(self, alias: str) -> None:
        """See :meth:`KeyStore.delete`. Without its file the key is gone: the TPM keeps nothing of it."""
        path = self._path(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(f"{path} can't be removed ({error.strerror}). Check owner and permissions.") from None
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
                f"This key lives in a TPM 2.0, which can't be used now: {error}. Nothing else can stand in for it."
            ) from None

    def _file(self, alias: str) -> KeyFile:
        found = self._files.get(alias)
        if found is None:
            path = self._path(alias)
            try:
                found = self._files[alias] = parse_key_file(path.read_text("utf-8"))
            except FileNotFoundError:
                raise KeyStoreError(
                    f"There is no key file {path}. Restore it, or make a new identity: init --force."
                ) from None
            except UnicodeDecodeError:
                raise damaged() from None
            except OSError as error:
                raise KeyStoreError(
                    f"The key file {path} can't be read ({error}). Check its owner and permissions."
                ) from None
        return found

    def _pin_of(self, alias: str, file: KeyFile) -> bytes | None:
        if not file.has_pin:
            return None
        if alias not in self._pins:
            self._pins[alias] = check_pin(self._pin())
        return self._pins[alias]
