"""The device directory: identity and key, created and opened (protocol.md §4)."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from authmesh import keystore
from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import (
    atomic_write,
    expanded,
    json_text,
    locked,
    make_private_directory,
    permission_problems,
)
from authmesh.keystore.tpm.counter import TpmCounter
from authmesh.keystore.tpm.pin import cannot_ask, pin_file_problems
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import (
    DirectoryError,
    IdentityExists,
    IdentityMissing,
    InvalidInput,
    KeyStoreError,
    PassphraseRequired,
    Run,
    StorageError,
)
from authmesh.protocol.keys import device_id

from .identity import Identity
from .passphrase import find_passphrase, find_passphrases, passphrase_file
from .variables import directory_variable

logger = logging.getLogger("amesh_django.device")

DEFAULT_DIRECTORY = "~/.amesh"
MAX_NAME_CHARACTERS = 128


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return ``AMESH_DIR`` or ``AUTH_MESH_DIR``, or ``~/.amesh`` if neither is set.

    Raises:
        DirectoryError: both are set, and differ.
        StorageError: there is no home folder.
    """
    return expanded(directory_variable(environ) or DEFAULT_DIRECTORY)


def check_name(name: str) -> str:
    """Return a friendly name without surrounding white space.

    Raises:
        InvalidInput: the name is empty, longer than 128 characters, or has control or formatting characters.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidInput(
            f"A name must have 1 to {MAX_NAME_CHARACTERS} printable characters.", hint="Choose another with --name."
        )
    return name


class LocalDevice:
    """This device: its identity and its key. The key is unlocked on first use, once per object.

    Args:
        path: the device directory. Defaults to :func:`default_directory`.
        environ: the variables of protocol.md §10.
        identity: an identity whose key is in the key store of the directory. Defaults to the one in ``identity.json``.

    Raises:
        IdentityMissing: the directory has no identity.
        DirectoryError: the identity cannot be read.
        BackendUnavailable: its key store cannot be used on this machine.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        identity: Identity | None = None,
    ) -> None:
        self.path = expanded(path) if path is not None else default_directory(environ)
        self.identity = identity or read_identity(self.path)
        self._is_current = identity is None
        self._renewed: LocalDevice | None = None
        self._environ = environ
        self._ask_pin = cannot_ask
        self._keys = keystore.open_key_store(
            self.identity.storage_backend,
            folder=self.path / "keys",
            passphrase=lambda: find_passphrases(self.path, environ),
            environ=environ,
            ask_pin=lambda: self._ask_pin(),
        )
        self._checked = False
        self._lock = ForkSafeLock()
        problems = permission_problems(self.path, passphrase_file(self.path, environ))
        if self.identity.storage_backend == "tpm2":
            problems += pin_file_problems(environ)
        for problem in problems:
            logger.warning("%s", problem)

    def ask_pin_by(self, ask: Callable[[], str]) -> None:
        """Set the function that asks a person for the PIN of a TPM key if no PIN file is configured.

        Without such a function, signing raises PinRequired.

        Args:
            ask: returns the PIN. It is called once, when the key first signs.
        """
        self._ask_pin = ask

    def renewed(self) -> LocalDevice | None:
        """Return this device with the key that has replaced its own, or None if the key was not replaced.

        A device that was opened with an identity of its own choice is never renewed.

        Raises:
            DirectoryError, BackendUnavailable: the identity cannot be read, or its key store cannot be used on this machine.
        """
        now = read_identity(self.path) if self._is_current else self.identity
        if now.device_id == self.identity.device_id:
            return None
        if self._renewed is None or self._renewed.identity.device_id != now.device_id:
            self._renewed = LocalDevice(self.path, environ=self._environ)
            self._renewed.ask_pin_by(self._ask_pin)
        return self._renewed

    def _check(self) -> None:
        """Compare the key with the identity before it signs or seals anything."""
        if not self._checked:
            with self._lock:
                secret = self._keys.seal_secret(self.identity.key_alias)
                if len(secret) < 32:
                    raise KeyStoreError(
                        "The secret of the seal is empty or truncated.", hint="Restore the key from a backup."
                    )
                if self._keys.public_key(self.identity.key_alias) != self.identity.public_key:
                    raise KeyStoreError(
                        "The key in the key store is not the key in identity.json.",
                        hint="Restore both from the same backup.",
                    )
                self._checked = True

    def sign(self, message: bytes) -> bytes:
        """Return the signature of *message* by this device's key: ``r || s``, low-S, 64 bytes.

        Raises:
            KeyStoreError: the key cannot be unlocked, or is not the key of the identity.
        """
        self._check()
        return self._keys.sign(self.identity.key_alias, message)

    def seal_secret(self) -> bytes:
        """Return the key material for the seal of the allow list, 32 bytes. Never show or log it.

        Raises:
            KeyStoreError: the key cannot be unlocked, or is not the key of the identity.
        """
        self._check()
        return self._keys.seal_secret(self.identity.key_alias)


def read_identity(path: Path) -> Identity:
    """Return the identity in a device directory.

    Raises:
        IdentityMissing: there is none.
        DirectoryError: it cannot be read.
    """
    try:
        return Identity.from_text((path / "identity.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise IdentityMissing(
            f"There is no identity in {path}.", hint=("To make one, run ", Run("init", "--name NAME"), ".")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DirectoryError(
            f"{path / 'identity.json'} cannot be read ({error}).", hint="Check its owner and permissions."
        ) from None


def init_device(
    path: Path,
    name: str,
    *,
    now: dt.datetime,
    backend: str | None = None,
    force: bool = False,
    max_controllers: int | None = None,
    pin: str | None = None,
    environ: Mapping[str, str] = os.environ,
    report: keystore.Report = lambda backend, problem: None,
) -> Identity:
    """Make an identity: directory, passphrase, key, ``identity.json``. If that fails, everything is as before.

    Args:
        path: the device directory; created if it is missing.
        name: friendly name.
        now: time of creation, with a time zone.
        backend: a name of :data:`authmesh.keystore.BACKENDS`. Defaults to the best one of this machine.
        force: replace an existing identity. Its key is deleted. Its allow list is saved as ``allow_list.<old device ID>.json``,
            or ``allow_list.before-<new device ID>.json`` if the old identity cannot be read.
        max_controllers: controllers that may be trusted at the same time; None writes no limit, which means 1.
        pin: PIN that each signature of the new key needs; only for keys in a TPM.
        environ: the variables of protocol.md §10, and those of the TPM.
        report: called for each back end that is tried, with the error if it cannot be used.

    Raises:
        IdentityExists: there is an identity, and *force* is not set.
        InvalidInput: the name, the limit or the PIN is not valid.
        BackendUnavailable, PassphraseRequired, StorageError: the key cannot be created.
    """
    name = check_name(name)
    if max_controllers is not None and max_controllers < 1:
        raise InvalidInput("--max-controllers must be an integer greater than or equal to 1.")
    make_private_directory(path)
    with locked(path), contextlib.ExitStack() as undo:
        old = _replaced_identity(path, force)
        chosen = keystore.choose(backend, report, environ=environ)
        passphrase = (
            _passphrase_for_init(path, environ, undo) if chosen == keystore.EncryptedFileKeyStore.backend else ""
        )
        store = keystore.open_key_store(
            chosen, folder=path / "keys", passphrase=lambda: passphrase, environ=environ, ask_pin=lambda: pin or ""
        )
        alias, public_key = store.create(pin=pin)
        undo.callback(store.delete, alias)
        identity = Identity(device_id(public_key), alias, public_key, name, format_time(now), chosen, max_controllers)
        _save_allow_list(path, old, identity, undo)
        try:
            atomic_write(path / "identity.json", json_text(identity.to_json()))
        finally:
            if _is_in_place(path, identity):  # also if Ctrl-C came right after the file was written
                undo.pop_all()
        if old is not None:
            delete_key(path, old, environ)
        if force:
            _forget_servers(path, identity, environ)
    return identity


def _forget_servers(path: Path, new: Identity, environ: Mapping[str, str]) -> None:
    """Remove what was noted about the old identity: the servers where it enrolled, and a replacement of its key with both keys."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, DirectoryError):
        value = json.loads((path / "rotation.json").read_text("utf-8"))
        for name in ("old", "new"):
            identity = Identity.from_text(json.dumps(value[name]))
            if identity.key_alias != new.key_alias:
                delete_key(path, identity, environ)
    for name in ("rotation.json", "servers.json"):
        with contextlib.suppress(OSError):
            (path / name).unlink()


def delete_key(path: Path, old: Identity, environ: Mapping[str, str]) -> None:
    """Delete the key of an identity that is not in use any more, and its counter in the TPM."""
    # The alias of an old file may be invalid, and its back end may not exist on this machine.
    with contextlib.suppress(KeyStoreError, StorageError):
        store = keystore.open_key_store(
            old.storage_backend, folder=path / "keys", passphrase=lambda: "", environ=environ
        )
        store.delete(old.key_alias)
        if old.storage_backend == "tpm2":  # a TPM has room for few counters
            for name in (old.device_id, f"shared {old.device_id}"):
                TpmCounter(tcti_name(environ), name, b"").remove()


def _is_in_place(path: Path, identity: Identity) -> bool:
    try:
        return read_identity(path).device_id == identity.device_id
    except DirectoryError:
        return False


def _replaced_identity(path: Path, force: bool) -> Identity | None:
    if not (path / "identity.json").exists():
        return None
    if not force:
        raise IdentityExists(
            f"There is already an identity in {path}. Nothing was changed.",
            hint="Use --force to replace it. Every server that trusts it will reject the new identity.",
        )
    try:
        return read_identity(path)
    except DirectoryError:
        return None


def _passphrase_for_init(path: Path, environ: Mapping[str, str], undo: contextlib.ExitStack) -> str:
    try:
        return find_passphrase(path, environ)
    except PassphraseRequired:
        file = passphrase_file(path, environ)
        if file.exists():
            raise
    passphrase = secrets.token_hex(32)
    undo.callback(file.unlink, missing_ok=True)
    atomic_write(file, passphrase, mode=0o400)
    return passphrase


def _save_allow_list(path: Path, old: Identity | None, new: Identity, undo: contextlib.ExitStack) -> None:
    """Rename the old allow list. It is sealed by another key, so the new identity could never use it."""
    source = path / "allow_list.json"
    saved = path / f"allow_list.{old.device_id if old else f'before-{new.device_id}'}.json"
    try:
        source.rename(saved)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"The old allow list {source} cannot be saved as {saved.name} ({error.strerror}). Nothing was changed.",
            hint="Check the owner and permissions of the folder.",
        ) from None
    undo.callback(saved.rename, source)
