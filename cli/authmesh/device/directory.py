"""The directory of a device: identity, passphrase, key; found, made and opened (protocol.md §4)."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from authmesh.keystore.tpm.pin import nobody_to_ask, open_pin_file
from authmesh.keystore.tpm.place import tcti_name
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import (
    AmeshError,
    DirectoryError,
    IdentityExists,
    IdentityMissing,
    InvalidInput,
    KeyStoreError,
    PassphraseRequired,
    StorageError,
)
from authmesh.protocol.keys import device_id

from .identity import LEGACY_PASSPHRASE, Identity

logger = logging.getLogger("amesh_django.device")

DEFAULT_DIRECTORY = "~/.amesh"
MAX_NAME_CHARACTERS = 128


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """``AUTH_MESH_DIR``, else ``~/.amesh``."""
    return expanded(environ.get("AUTH_MESH_DIR") or DEFAULT_DIRECTORY)


def check_name(name: str) -> str:
    """A friendly name as it may be stored: stripped, 1–128 characters, nothing that controls a terminal.

    Raises:
        InvalidInput: empty, too long, or with control or formatting characters.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidInput(f"A name has 1 to {MAX_NAME_CHARACTERS} printable characters. Choose another with --name.")
    return name


class LocalDevice:
    """This device: who it is, and its key. The key is unlocked when it is first used, once per object.

    Args:
        path: the device directory; None means :func:`default_directory`.
        environ: where the variables of protocol.md §10 are looked up.

    Raises:
        IdentityMissing: there is no identity in it.
        DirectoryError: the identity can't be read.
        BackendUnavailable: its key store can't be used here.
    """

    def __init__(self, path: Path | str | None = None, *, environ: Mapping[str, str] = os.environ) -> None:
        self.path = expanded(path) if path is not None else default_directory(environ)
        self.identity = read_identity(self.path)
        self._ask_pin = nobody_to_ask
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
            problems += open_pin_file(environ)
        for problem in problems:
            logger.warning("%s", problem)

    def ask_pin_by(self, ask: Callable[[], str]) -> None:
        """Let a person be asked for the PIN of a key in the TPM, where no file has it. Without this it is PinRequired.

        Args:
            ask: returns the PIN; called once, when the key first signs.
        """
        self._ask_pin = ask

    def _check(self) -> None:
        """The key must be the one that the identity names, before it signs or seals anything."""
        if not self._checked:
            with self._lock:
                secret = self._keys.seal_secret(self.identity.key_alias)
                if len(secret) < 32:
                    raise KeyStoreError("The secret of the seal is empty or truncated; restore the key from a backup.")
                if self._keys.public_key(self.identity.key_alias) != self.identity.public_key:
                    raise KeyStoreError(
                        "The key in the store is not the one in identity.json; restore both from the same backup."
                    )
                self._checked = True

    def sign(self, message: bytes) -> bytes:
        """Sign with this device's key: ``r || s``, low-S, 64 bytes.

        Raises:
            KeyStoreError: the key can't be unlocked, or is not the identity's.
        """
        self._check()
        return self._keys.sign(self.identity.key_alias, message)

    def seal_secret(self) -> bytes:
        """The key material for the seal of the allow list, 32 bytes. Never show or log it.

        Raises:
            KeyStoreError: the key can't be unlocked, or is not the identity's.
        """
        self._check()
        return self._keys.seal_secret(self.identity.key_alias)


def read_identity(path: Path) -> Identity:
    """The identity in a device directory.

    Raises:
        IdentityMissing: there is none.
        DirectoryError: it can't be read.
    """
    try:
        return Identity.from_text((path / "identity.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise IdentityMissing(
            f"There is no identity in {path}. Make one: amesh init --name NAME (or manage.py amesh_init --name NAME)."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DirectoryError(
            f"{path / 'identity.json'} can't be read ({error}). Check owner and permissions."
        ) from None


def passphrase_file(path: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the passphrase is kept if the environment does not have it: ``AMESH_PASSPHRASE_FILE``, else ``.passphrase``."""
    moved = environ.get("AMESH_PASSPHRASE_FILE")
    return expanded(moved) if moved else path / ".passphrase"


def find_passphrase(path: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The passphrase of the encrypted-file store, looked up as protocol.md §4 says.

    A legacy ``passphrase`` member of ``identity.json`` is moved to the passphrase file; where that can't be written, it is used
    as it is, with a warning in the log.

    Raises:
        PassphraseRequired: there is none, or an empty one.
    """
    return find_passphrases(path, environ)[0]


def find_passphrases(path: Path, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """As :func:`find_passphrase`, with every reading of it, the likeliest first.

    The reference drops white space round what stands in the file, though it may be part of the passphrase.
    """
    from_environment = environ.get("AUTH_MESH_PASSPHRASE")
    if from_environment:
        return (from_environment,)
    file = passphrase_file(path, environ)
    text = _read_passphrase(file)
    legacy = _legacy_passphrase(path)
    if legacy is not None and text in (None, legacy):  # both: something ended the move half-way
        _move_passphrase(path, file, legacy)
    if text is not None:
        return tuple(dict.fromkeys((text.strip(), text)))
    if legacy is not None:
        return (legacy,)
    raise PassphraseRequired(
        f"AUTH_MESH_PASSPHRASE required: set it, or put the passphrase into {file} (mode 0400). It was made by init."
    )


def passphrase_source(path: Path, environ: Mapping[str, str] = os.environ) -> str:
    """In words, where :func:`find_passphrase` finds it. Never the passphrase itself."""
    if environ.get("AUTH_MESH_PASSPHRASE"):
        return "the variable AUTH_MESH_PASSPHRASE"
    file = passphrase_file(path, environ)
    return f"the file {file}" if file.exists() or _legacy_passphrase(path) is None else "identity.json, its old place"


def _read_passphrase(file: Path) -> str | None:
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise PassphraseRequired(
            f"AUTH_MESH_PASSPHRASE required: {file} can't be read ({why}). Check its owner and permissions, or set the variable."
        ) from None
    if not text.strip():
        raise PassphraseRequired(f"AUTH_MESH_PASSPHRASE required: {file} is empty. Restore it or set the variable.")
    return text


def _legacy_passphrase(path: Path) -> str | None:
    try:
        value: Any = json.loads((path / "identity.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    legacy = value.get(LEGACY_PASSPHRASE) if isinstance(value, dict) else None
    return legacy if isinstance(legacy, str) and legacy else None


def _move_passphrase(path: Path, file: Path, legacy: str) -> None:
    if legacy != legacy.strip() or not legacy.isprintable():
        return  # the file is read without the white space round it, so it can't hold this one
    identity_file = path / "identity.json"
    try:
        with locked(path):
            if _legacy_passphrase(path) != legacy:  # another process was faster
                return
            if not file.exists():
                atomic_write(file, legacy, mode=0o400)
            value = json.loads(identity_file.read_text("utf-8"))
            del value[LEGACY_PASSPHRASE]
            atomic_write(identity_file, json_text(value))
        logger.warning("The passphrase was moved from %s to %s.", identity_file, file)
    except (OSError, AmeshError) as error:
        logger.warning("The passphrase stands in %s and could not be moved to %s: %s", identity_file, file, error)


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
    report: Callable[[str, str | None], None] = lambda backend, why_not: None,
) -> Identity:
    """Make an identity: directory, passphrase, key, ``identity.json``. Nothing half-made stays behind.

    Args:
        path: the device directory; made where it is missing.
        name: friendly name.
        now: time of creation, with a zone.
        backend: a name of :data:`authmesh.keystore.BACKENDS`; None takes the best.
        force: replace an identity that is there. Its key is deleted; its allow list is kept as
            ``allow_list.<old device id>.json`` (``allow_list.before-<new device id>.json`` where there is no old id to read).
        max_controllers: how many controllers may be trusted at a time; None is the default of 1.
        pin: asked for each signature of the new key; needs a TPM.
        environ: where the variables of protocol.md §10, and those of the TPM, are looked up.
        report: called for each back end that is tried, with None or with why it can't be used.

    Raises:
        IdentityExists: there is one, and *force* is not set.
        InvalidInput: the name, the limit or the PIN.
        BackendUnavailable, PassphraseRequired, StorageError: as they say.
    """
    name = check_name(name)
    if max_controllers is not None and max_controllers < 1:
        raise InvalidInput("--max-controllers is a number from 1.")
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
        _set_aside_allow_list(path, old, identity, undo)
        try:
            atomic_write(path / "identity.json", json_text(identity.to_json()))
        finally:
            if _is_in_place(path, identity):  # also where Ctrl-C came a moment after
                undo.pop_all()
        if old is not None:
            _delete_key(path, old, environ)
    return identity


def _delete_key(path: Path, old: Identity, environ: Mapping[str, str]) -> None:
    with contextlib.suppress(
        KeyStoreError, StorageError
    ):  # an old file's alias may be anything, its back end elsewhere
        store = keystore.open_key_store(
            old.storage_backend, folder=path / "keys", passphrase=lambda: "", environ=environ
        )
        store.delete(old.key_alias)
        if old.storage_backend == "tpm2":  # room in a TPM is scarce
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
            f"There is an identity in {path} already. --force replaces it: every server that trusts it will refuse the new one."
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


def _set_aside_allow_list(path: Path, old: Identity | None, new: Identity, undo: contextlib.ExitStack) -> None:
    """A list that another key has sealed would stop the new identity for good."""
    there = path / "allow_list.json"
    aside = path / f"allow_list.{old.device_id if old else f'before-{new.device_id}'}.json"
    try:
        there.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"The old allow list {there} can't be set aside ({error.strerror}); nothing was changed. Check permissions."
        ) from None
    undo.callback(aside.rename, there)
