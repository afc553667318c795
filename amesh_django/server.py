"""This server as a device: its identity, and the keys that seal its list in the database."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass
from pathlib import Path

from amesh_django.device import Identity, LocalDevice, read_identity
from amesh_django.device.locks import ForkSafeLock
from amesh_django.device.storage import expanded
from amesh_django.protocol.encoding import b64decode_any
from amesh_django.protocol.errors import IdentityMissing, InvalidInput, KeyStoreError
from amesh_django.protocol.seal import KEY_MATERIAL_BYTES, hkdf_sha256

from . import enrolment
from .conf import amesh_settings

_device_lock = ForkSafeLock()
_keys_lock = ForkSafeLock()
_device: LocalDevice | None = None
_keys: SealKeys | None = None
_refused: tuple[float, KeyStoreError] | None = None

#: A key that does not unlock is not tried again for that long, seconds: each try costs an Argon2id, and anybody can ask.
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


def server_device() -> LocalDevice:
    """This server's own device, from ``AMESH["DIR"]``; its key is unlocked once per process.

    Where there is no identity but a bootstrap token in ``AMESH_BOOTSTRAP_TOKEN``, a thread enrols this server with it; that is
    waited for a few seconds.

    Raises:
        BootstrapPending, BootstrapFailed: there is no identity yet, or none to be had with this token. Both are IdentityMissing.
        IdentityMissing, DirectoryError, KeyStoreError: as :class:`amesh_django.device.LocalDevice`.
    """
    global _device
    acting = enrolment.acting_device()
    if acting is not None:
        return acting
    if _device is None:
        enrolment.ensure_identity()
        with _device_lock:
            if _device is None:
                try:
                    _device = LocalDevice(amesh_settings().DIR)
                except IdentityMissing as error:
                    raise IdentityMissing(
                        f"{str(error).partition('. ')[0]}. Make one: manage.py amesh_init --name NAME."
                    ) from None
    return _device


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
    if enrolment.acting_device() is not None:
        return _derive(*_seal_secret())
    if _keys is None:
        with _keys_lock:
            if _refused is not None and time.monotonic() < _refused[0]:
                raise type(_refused[1])(*_refused[1].args)
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
    device = server_device()
    return device.seal_secret(), device.identity.device_id


def own_identity() -> Identity | None:
    """Who this server is; None where it has no identity: it needs none if several hosts share a seal secret.

    Raises:
        DirectoryError: there is one, and it can't be read.
    """
    if _device is not None:
        return _device.identity
    try:
        return read_identity(enrolment.server_directory())
    except IdentityMissing:
        return None


def controller_limit() -> int:
    """How many controllers may be trusted: ``AMESH["MAX_CONTROLLERS"]``, else ``maxControllers`` of the identity.

    Raises:
        IdentityMissing, DirectoryError: as :func:`server_device`.
    """
    limit = amesh_settings().MAX_CONTROLLERS
    return server_device().identity.controller_limit if limit is None else limit


def reset() -> None:
    """Forget identity, keys, settings, and all that was verified with them. For tests, and after ``init``."""
    global _device, _keys, _refused
    from . import activity, rollback, snapshot, verification

    with _keys_lock, _device_lock:  # in the order of seal_keys
        _device = _keys = _refused = None
        amesh_settings.cache_clear()
    snapshot.reset()
    rollback.reset()
    verification.reset()
    activity.reset()
