"""The encrypted-file key store: AES-256-GCM under an Argon2id key (protocol.md §4; RFC 9106; SP 800-38D)."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import atomic_write, json_text, make_private_directory
from authmesh.protocol.encoding import b64decode, b64encode
from authmesh.protocol.errors import InvalidInput, KeyStoreError, PassphraseRequired, StorageError, WrongPassphrase
from authmesh.protocol.keys import (
    PRIVATE_KEY_BYTES,
    decode_public_key,
    device_id,
    encode_public_key,
    generate_private_key,
    load_private_key,
    public_key_bytes,
    sign,
)
from authmesh.protocol.seal import hkdf_sha256

from .base import CreatedKey, KeyStore, check_alias

FILE_VERSION = "2.0.0"
#: Argon2id parameters of new files: passes, KiB, lanes (RFC 9106 §4, second recommendation).
ARGON2_PARAMS = {"t": 3, "m": 65536, "p": 1}
_BOUNDS = {"t": (1, 16), "m": (8, 1 << 20), "p": (1, 16)}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16


def _derive(passphrase: str, salt: bytes, params: Mapping[str, int]) -> bytes:
    if _SURROGATE.search(passphrase):  # asked before: the error of encode() would carry the passphrase
        raise WrongPassphrase("The passphrase is not UTF-8 text. Set AUTH_MESH_PASSPHRASE in a UTF-8 locale.")
    try:
        return hash_secret_raw(
            secret=passphrase.encode(),
            salt=salt,
            time_cost=params["t"],
            memory_cost=params["m"],
            parallelism=params["p"],
            hash_len=32,
            type=Type.ID,
        )
    except HashingError:
        raise KeyStoreError(
            f"Argon2id failed: it needs {params['m'] // 1024} MiB of memory. Free some, or raise this process's limit."
        ) from None


def _damaged(what: str) -> KeyStoreError:
    return KeyStoreError(
        f"The key file is damaged ({what}). Restore it from a backup, or make a new identity: init --force."
    )


def encrypt_key_file(private_key: bytes, passphrase: str, params: Mapping[str, int] = ARGON2_PARAMS) -> str:
    """The text of a key file.

    Args:
        private_key: 32 bytes.
        passphrase: not empty.
        params: of Argon2id: passes, KiB, lanes. Weaker ones are for throw-away keys of tests only.

    Raises:
        PassphraseRequired: *passphrase* is empty.
        InvalidInput: *private_key* is no key.
    """
    if not passphrase:
        raise PassphraseRequired("AUTH_MESH_PASSPHRASE required: an empty passphrase protects nothing.")
    public_key = public_key_bytes(load_private_key(private_key))
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    ciphertext = AESGCM(_derive(passphrase, salt, params)).encrypt(nonce, private_key, None)
    return json_text(
        {
            "version": FILE_VERSION,
            "algorithm": "aes-256-gcm",
            "kdf": "argon2id",
            "argon2Params": dict(params),
            "salt": b64encode(salt),
            "nonce": b64encode(nonce),
            "ciphertext": b64encode(ciphertext),
            "publicKey": encode_public_key(public_key),
        }
    )


def parse_key_file(text: str) -> dict[str, Any]:
    """The members of a key file, decoded: salt, nonce, ciphertext, publicKey as bytes, argon2Params as numbers.

    Raises:
        KeyStoreError: not JSON, a member missing or of a wrong length, Argon2 parameters out of bounds.
    """
    try:
        raw = json.loads(text)
        found: dict[str, Any] = {
            "salt": b64decode(raw["salt"]),
            "nonce": b64decode(raw["nonce"]),
            "ciphertext": b64decode(raw["ciphertext"]),
            "publicKey": decode_public_key(raw["publicKey"]),
            "argon2Params": {name: raw["argon2Params"][name] for name in _BOUNDS},
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged("not the JSON of a key file") from None
    lengths = {"salt": _SALT_BYTES, "nonce": _NONCE_BYTES, "ciphertext": PRIVATE_KEY_BYTES + _TAG_BYTES}
    for name, length in lengths.items():
        if len(found[name]) != length:
            raise _damaged(f"{name} has {len(found[name])} bytes, not {length}")
    for name, (low, high) in _BOUNDS.items():
        value = found["argon2Params"][name]
        if type(value) is not int or not low <= value <= high:
            raise _damaged(f"Argon2 parameter {name} lies outside {low}–{high}")
    if found["argon2Params"]["m"] < 8 * found["argon2Params"]["p"]:
        raise _damaged("Argon2 parameter m is below 8 × p")
    return found


def decrypt_key_file(text: str, passphrase: str) -> bytes:
    """The private key (32 bytes) in a key file.

    The file's own Argon2 parameters are used; the reference writes some that it did not use, so its fixed ones are tried next.

    Raises:
        WrongPassphrase: neither opens it.
        PassphraseRequired: *passphrase* is empty.
        KeyStoreError: the file is damaged, or there is not enough memory.
    """
    members = parse_key_file(text)
    if not passphrase:
        raise PassphraseRequired("AUTH_MESH_PASSPHRASE required: the passphrase found is empty.")
    attempts = [members["argon2Params"]]
    if members["argon2Params"] != ARGON2_PARAMS:
        attempts.append(ARGON2_PARAMS)
    for params in attempts:
        try:
            key = AESGCM(_derive(passphrase, members["salt"], params))
            private_key = key.decrypt(members["nonce"], members["ciphertext"], None)
        except InvalidTag:
            continue
        try:
            load_private_key(private_key)
        except InvalidInput:
            raise _damaged("it holds no private key") from None
        return private_key
    raise WrongPassphrase(
        "The key does not open: wrong passphrase, or a damaged key file. Check AUTH_MESH_PASSPHRASE or the .passphrase file."
    )


#: A passphrase, or several readings of one; the first is that which new keys get.
Passphrases = str | tuple[str, ...]


class EncryptedFileKeyStore(KeyStore):
    """Keys in ``keys/<alias>.key.json``; each is unlocked once per process, then kept in memory.

    Args:
        folder: the ``keys`` folder of a device directory.
        passphrase: called when a key is first needed; raises PassphraseRequired where there is none.
    """

    backend: ClassVar[str] = "encrypted-file"
    protection: ClassVar[str] = (
        "software protection: whoever can read the key file and its passphrase can copy the key to another machine"
    )

    def __init__(self, folder: Path, passphrase: Callable[[], Passphrases]) -> None:
        self._folder = folder
        self._passphrase = passphrase
        self._lock = ForkSafeLock()
        self._unlocked: dict[str, tuple[ec.EllipticCurvePrivateKey, bytes, bytes]] = {}

    def _path(self, alias: str) -> Path:
        return self._folder / f"{check_alias(alias)}.key.json"

    def _text(self, alias: str) -> str:
        path = self._path(alias)
        try:
            return path.read_text("utf-8")
        except FileNotFoundError:
            raise KeyStoreError(
                f"There is no key file {path}. Restore it, or make a new identity: init --force."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise KeyStoreError(
                f"The key file {path} can't be read ({error}). Check its owner and permissions."
            ) from None

    def _passphrases(self) -> tuple[str, ...]:
        found = self._passphrase()
        return (found,) if isinstance(found, str) else found

    def _decrypt(self, text: str) -> bytes:
        first, *others = self._passphrases()
        try:
            return decrypt_key_file(text, first)
        except WrongPassphrase:
            for other in others:
                with contextlib.suppress(WrongPassphrase):
                    return decrypt_key_file(text, other)
            raise

    def _unlock(self, alias: str) -> tuple[ec.EllipticCurvePrivateKey, bytes, bytes]:
        found = self._unlocked.get(alias)
        if found is None:
            with self._lock:
                found = self._unlocked.get(alias)
                if found is None:
                    text = self._text(alias)
                    private_key = self._decrypt(text)
                    key = load_private_key(private_key)
                    public_key = public_key_bytes(key)
                    if public_key != parse_key_file(text)["publicKey"]:
                        raise _damaged("its public key is not that of its private key")
                    secret = hkdf_sha256(private_key, salt=b"amesh-hmac-material-v1", info=alias.encode())
                    found = self._unlocked[alias] = (key, public_key, secret)
        return found

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """See :meth:`KeyStore.create`. The alias is the device id. There is no PIN beside the passphrase."""
        if pin is not None:
            raise InvalidInput("A key file has a passphrase, and no PIN. A PIN needs a TPM: init --backend tpm2.")
        private_key = generate_private_key()
        public_key = public_key_bytes(load_private_key(private_key))
        alias = device_id(public_key)
        text = encrypt_key_file(private_key, self._passphrases()[0])
        make_private_directory(self._folder)
        atomic_write(self._path(alias), text)
        return CreatedKey(alias, public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        """See :meth:`KeyStore.sign`."""
        return sign(self._unlock(alias)[0], message)

    def public_key(self, alias: str) -> bytes:
        """See :meth:`KeyStore.public_key`. Needs no passphrase; once the key is unlocked, it is the key's own."""
        found = self._unlocked.get(alias)
        public: bytes = found[1] if found else parse_key_file(self._text(alias))["publicKey"]
        return public

    def seal_secret(self, alias: str) -> bytes:
        """See :meth:`KeyStore.seal_secret`."""
        return self._unlock(alias)[2]

    def delete(self, alias: str) -> None:
        """See :meth:`KeyStore.delete`."""
        path = self._path(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(f"{path} can't be removed ({error.strerror}). Check owner and permissions.") from None
        self._unlocked.pop(alias, None)
