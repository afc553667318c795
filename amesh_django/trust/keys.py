"""The keys of the sealed list in the database: where their secret comes from, and how each is derived from it."""

from __future__ import annotations

import copy
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from amesh_django.conf import amesh_settings
from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import expanded
from authmesh.protocol.encoding import b64decode_any
from authmesh.protocol.errors import InvalidInput, KeyStoreError
from authmesh.protocol.seal import KEY_MATERIAL_BYTES, hkdf_sha256

from .owner import acting_device, open_device

_keys_lock = ForkSafeLock()
_keys: SealKeys | None = None
_refused: tuple[float, KeyStoreError] | None = None

#: Seconds before a key that could not be unlocked is tried again: each try costs an Argon2id, and anyone can send a request.
_PAUSE_SECONDS = 5.0

#: Owner in the seal of a list whose secret several hosts share.
SHARED_OWNER = "shared"


@dataclass(frozen=True, slots=True, repr=False)
class SealKeys:
    """The keys of the sealed list in the database. No repr: they must not reach a log.

    Attributes:
        hash: of the multiset hash, 32 bytes.
        seal: of the HMAC over the seal row, 32 bytes.
        journal: of the HMAC over each line of the journal, 32 bytes.
        record: of the HMAC over what this host remembers of the newest list, 32 bytes.
        counter: password of the counter in the TPM, 32 bytes.
        owner: device id whose list it is, or ``shared``; bound by the HMAC.
    """

    hash: bytes
    seal: bytes
    journal: bytes
    record: bytes
    counter: bytes
    owner: str


def read_seal_key_file(path: Path) -> bytes:
    """The shared seal secret: 64 hex characters, or base64, of at least 32 bytes.

    Raises:
        KeyStoreError: it can't be read, is open to others, empty, truncated or not text of that kind.
    """
    make = "Make one: (umask 077; openssl rand -hex 32 > FILE), the same on every host."
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyStoreError(f"The seal key file {path} is open to others. Close it: chmod 600 {path}")
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyStoreError(f"The seal key file {path} can't be read ({type(error).__name__}). {make}") from None
    try:
        secret = bytes.fromhex(text) if len(text) == 64 else b64decode_any(text)
    except (ValueError, InvalidInput):
        secret = b""
    if len(secret) < KEY_MATERIAL_BYTES:
        raise KeyStoreError(f"The seal key file {path} is empty, truncated or not hex or base64 of 32 bytes. {make}")
    return secret


def seal_keys() -> SealKeys:
    """The keys of the sealed list, derived once per process (HKDF, RFC 5869).

    Raises:
        KeyStoreError, DirectoryError: the secret can't be had.
    """
    global _keys, _refused
    if acting_device() is not None:
        return _derive(*_seal_secret())
    if _keys is None:
        with _keys_lock:
            if _refused is not None and time.monotonic() < _refused[0]:
                raise copy.copy(_refused[1])
            if _keys is None:
                try:
                    secret, owner = _seal_secret()
                except KeyStoreError as error:
                    _refused = (time.monotonic() + _PAUSE_SECONDS, error)
                    raise
                _keys = _derive(secret, owner)
    return _keys


def _derive(secret: bytes, owner: str) -> SealKeys:
    keys = hkdf_sha256(secret, salt=b"amesh-allow-list-database-v1", info=owner.encode(), length=96)
    more = hkdf_sha256(secret, salt=b"amesh-newest-list-v1", info=owner.encode(), length=64)
    return SealKeys(keys[:32], keys[32:64], keys[64:], more[:32], more[32:], owner)


def _seal_secret() -> tuple[bytes, str]:
    shared = amesh_settings().SEAL_KEY_FILE
    if shared is not None:
        return read_seal_key_file(expanded(shared)), SHARED_OWNER
    device = open_device()
    return device.seal_secret(), device.identity.device_id


def reset() -> None:
    """Forget the keys."""
    global _keys, _refused
    with _keys_lock:
        _keys = _refused = None
