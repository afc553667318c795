"""The encrypted-file key store: AES-256-GCM under a key from Argon2id (protocol.md §4; RFC 9106; SP 800-38D)."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import atomic_write, json_text, make_private_directory
from authmesh.protocol.encoding import b64decode, b64encode
from authmesh.protocol.errors import (
    InvalidInput,
    KeyStoreError,
    PassphraseRequired,
    StorageError,
    WrongPassphrase,
)
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

from .base import NEW_IDENTITY, CreatedKey, KeyStore, check_alias

FILE_VERSION = "2.0.0"


class Argon2Cost(NamedTuple):
    """Cost parameters of Argon2id (RFC 9106 §3.1), with the names that they have in key files.

    Attributes:
        t: passes over the memory.
        m: memory, in KiB.
        p: degree of parallelism.
    """

    t: int
    m: int
    p: int


#: Cost of new key files (RFC 9106 §4, second recommendation, with one lane).
DEFAULT_COST: Final = Argon2Cost(t=3, m=65536, p=1)
_BOUNDS = {"t": (1, 16), "m": (8, 1 << 20), "p": (1, 16)}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16

#: A passphrase, or several readings of it. New keys are encrypted with the first one.
Passphrases = str | tuple[str, ...]


class KeyFile(NamedTuple):
    """The decoded members of a key file."""

    salt: bytes
    nonce: bytes
    ciphertext: bytes
    public_key: bytes
    cost: Argon2Cost


def _derive(passphrase: str, salt: bytes, cost: Argon2Cost) -> bytes:
    if _SURROGATE.search(passphrase):  # checked first, because the error of encode() would contain the passphrase
        raise WrongPassphrase(
            "The passphrase is not UTF-8 text.", hint="Set AMESH_PASSPHRASE or AUTH_MESH_PASSPHRASE in a UTF-8 locale."
        )
    try:
        return hash_secret_raw(
            secret=passphrase.encode(),
            salt=salt,
            time_cost=cost.t,
            memory_cost=cost.m,
            parallelism=cost.p,
            hash_len=32,
            type=Type.ID,
        )
    except HashingError:
        raise KeyStoreError(
            f"The key cannot be unlocked because Argon2id failed. It needs {cost.m // 1024} MiB of memory.",
            hint="Free some memory, or raise the memory limit of this process.",
        ) from None


def _damaged(reason: str) -> KeyStoreError:
    return KeyStoreError(
        f"The key file is damaged ({reason}).",
        hint=("Restore it from a backup. Or to make a new identity, run ", NEW_IDENTITY, "."),
    )


def encrypt_key_file(private_key: bytes, passphrase: str, cost: Argon2Cost = DEFAULT_COST) -> str:
    """Return the text of a key file.

    Args:
        private_key: 32 bytes.
        passphrase: not empty.
        cost: cost of Argon2id. A lower cost than the default is only for throw-away keys of tests.

    Raises:
        PassphraseRequired: *passphrase* is empty.
        InvalidInput: *private_key* is not a private key.
    """
    if not passphrase:
        raise PassphraseRequired(
            "AUTH_MESH_PASSPHRASE required: an empty passphrase protects nothing.", hint="Set a passphrase."
        )
    public_key = public_key_bytes(load_private_key(private_key))
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    ciphertext = AESGCM(_derive(passphrase, salt, cost)).encrypt(nonce, private_key, None)
    return json_text(
        {
            "version": FILE_VERSION,
            "algorithm": "aes-256-gcm",
            "kdf": "argon2id",
            "argon2Params": cost._asdict(),
            "salt": b64encode(salt),
            "nonce": b64encode(nonce),
            "ciphertext": b64encode(ciphertext),
            "publicKey": encode_public_key(public_key),
        }
    )


def parse_key_file(text: str) -> KeyFile:
    """Parse the text of a key file.

    Raises:
        KeyStoreError: not JSON, a member is missing or has the wrong length, or an Argon2 parameter is out of bounds.
    """
    try:
        raw: Any = json.loads(text)
        file = KeyFile(
            salt=b64decode(raw["salt"]),
            nonce=b64decode(raw["nonce"]),
            ciphertext=b64decode(raw["ciphertext"]),
            public_key=decode_public_key(raw["publicKey"]),
            cost=Argon2Cost(**{name: raw["argon2Params"][name] for name in _BOUNDS}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged("it is not the JSON of a key file") from None
    lengths = {"salt": _SALT_BYTES, "nonce": _NONCE_BYTES, "ciphertext": PRIVATE_KEY_BYTES + _TAG_BYTES}
    for name, length in lengths.items():
        if len(getattr(file, name)) != length:
            raise _damaged(f"{name} has {len(getattr(file, name))} bytes instead of {length}")
    for name, (low, high) in _BOUNDS.items():
        value = getattr(file.cost, name)
        if type(value) is not int or not low <= value <= high:
            raise _damaged(f"Argon2 parameter {name} is not in the range {low}–{high}")
    if file.cost.m < 8 * file.cost.p:
        raise _damaged("Argon2 parameter m is less than 8 × p")
    return file


def decrypt_key_file(text: str, passphrase: str) -> bytes:
    """Return the private key (32 bytes) in a key file.

    The key is derived with the Argon2 parameters in the file. If that fails, it is derived with the default ones, because some
    versions of the reference write parameters that they did not use.

    Raises:
        WrongPassphrase: neither parameters open the file.
        PassphraseRequired: *passphrase* is empty.
        KeyStoreError: the file is damaged, or there is not enough memory.
    """
    file = parse_key_file(text)
    if not passphrase:
        raise PassphraseRequired(
            "AUTH_MESH_PASSPHRASE required: the passphrase is empty.", hint="Set AUTH_MESH_PASSPHRASE."
        )
    for cost in dict.fromkeys((file.cost, DEFAULT_COST)):
        try:
            key = AESGCM(_derive(passphrase, file.salt, cost))
            private_key = key.decrypt(file.nonce, file.ciphertext, None)
        except InvalidTag:
            continue
        try:
            load_private_key(private_key)
        except InvalidInput:
            raise _damaged("it has no private key") from None
        return private_key
    raise WrongPassphrase(
        "The key file cannot be decrypted: the passphrase is wrong, or the file is damaged.",
        hint="Check AMESH_PASSPHRASE or AUTH_MESH_PASSPHRASE if one of them is set, or else the .passphrase file.",
    )


class EncryptedFileKeyStore(KeyStore):
    """Keys in ``keys/<alias>.key.json``. Each key is unlocked once per process and then kept in memory.

    Args:
        folder: the ``keys`` folder of a device directory.
        passphrase: called when a key is first needed; raises PassphraseRequired if there is no passphrase.
        cost: cost of Argon2id for new keys. Tests use a lower one for throw-away keys.
    """

    backend: ClassVar[str] = "encrypted-file"
    in_hardware: ClassVar[bool] = False
    protection: ClassVar[str] = (
        "The key is protected by software only. Anyone who can read the key file and its passphrase can copy it."
    )

    def __init__(self, folder: Path, passphrase: Callable[[], Passphrases], *, cost: Argon2Cost = DEFAULT_COST) -> None:
        self._folder = folder
        self._passphrase = passphrase
        self._cost = cost
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
                f"There is no key file {path}.",
                hint=("Restore it. Or to make a new identity, run ", NEW_IDENTITY, "."),
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise KeyStoreError(
                f"The key file {path} cannot be read ({error}).", hint="Check its owner and permissions."
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
                    if public_key != parse_key_file(text).public_key:
                        raise _damaged("its public key does not belong to its private key")
                    secret = hkdf_sha256(private_key, salt=b"amesh-hmac-material-v1", info=alias.encode())
                    found = self._unlocked[alias] = (key, public_key, secret)
        return found

    def create(self, *, pin: str | None = None) -> CreatedKey:
        """Create a P-256 key whose alias is its device ID. The store has a passphrase and does not support PINs."""
        if pin is not None:
            raise InvalidInput(
                "The key store encrypted-file does not support PINs. No key was created.",
                hint="Use --backend tpm2 for a key with a PIN.",
            )
        private_key = generate_private_key()
        public_key = public_key_bytes(load_private_key(private_key))
        alias = device_id(public_key)
        text = encrypt_key_file(private_key, self._passphrases()[0], self._cost)
        make_private_directory(self._folder)
        atomic_write(self._path(alias), text)
        return CreatedKey(alias, public_key)

    def sign(self, alias: str, message: bytes) -> bytes:
        return sign(self._unlock(alias)[0], message)

    def public_key(self, alias: str) -> bytes:
        """Return the public key, 33 bytes. A locked key needs no passphrase: the public key is in its file."""
        found = self._unlocked.get(alias)
        return found[1] if found else parse_key_file(self._text(alias)).public_key

    def seal_secret(self, alias: str) -> bytes:
        return self._unlock(alias)[2]

    def delete(self, alias: str) -> None:
        path = self._path(alias)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be deleted ({error.strerror}).", hint="Check the owner and permissions of the folder."
            ) from None
        self._unlocked.pop(alias, None)
