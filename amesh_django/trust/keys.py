"""The keys of the sealed list: the secret they are derived from, and how each is derived."""

from __future__ import annotations

import copy
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from django.utils.translation import gettext as _

from amesh_django.conf import amesh_settings
from authmesh.device import LocalDevice
from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import expanded
from authmesh.protocol.encoding import b64decode_any
from authmesh.protocol.errors import InvalidInput, KeyStoreError
from authmesh.protocol.seal import KEY_MATERIAL_BYTES, hkdf_sha256

from .owner import open_device

_keys_lock = ForkSafeLock()
_keys: tuple[SealKeys, ...] | None = None
_failure: tuple[float, KeyStoreError] | None = None

#: Seconds before a key that could not be unlocked is tried again: each try costs an Argon2id, and anyone can send a request.
_PAUSE_SECONDS = 5.0

#: Owner in the seal of a list whose secret several hosts share.
SHARED_OWNER = "shared"


@dataclass(frozen=True, slots=True, repr=False)
class SealKeys:
    """The keys of the sealed list. There is no repr, so that they never get into a log.

    Attributes:
        hash: key of the multiset hash, 32 bytes.
        seal: key of the HMAC over the seal row, 32 bytes.
        audit: key of the HMAC over each event of the audit log, 32 bytes.
        chain: key of the HMAC that links each event to the one before, 32 bytes.
        high_water: key of the HMAC over the high-water file, 32 bytes.
        counter: password of the counter in the TPM, 32 bytes.
        enrollment: key from which the secrets of enrollment tokens are derived, 32 bytes.
        tokens: key of the HMAC over each enrollment token in the database, 32 bytes.
        feed: key of the HMAC over what a server knows of its hubs, and a hub of its servers, 32 bytes.
        pairing: key of the HMAC over each pairing that a person began in the admin, and over each answer, 32 bytes.
        owner: ID of the device that owns the list, or ``shared``; bound by the HMAC of the seal row.
    """

    hash: bytes
    seal: bytes
    audit: bytes
    chain: bytes
    high_water: bytes
    counter: bytes
    enrollment: bytes
    tokens: bytes
    feed: bytes
    pairing: bytes
    owner: str


def read_seal_key_file(path: Path) -> bytes:
    """Return the shared seal secret: at least 32 bytes, stored as 64 hex characters or as base64.

    Raises:
        KeyStoreError: the file cannot be read, is open to other users, or holds no such text.
    """
    make = _("To make one, run: (umask 077; openssl rand -hex 32 > FILE). Use the same file on every host.")
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyStoreError(
                _("The seal key file %(path)s is open to other users.") % {"path": path},
                hint=_("To close it, run: chmod 600 %(path)s") % {"path": path},
            )
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyStoreError(
            _("The seal key file %(path)s cannot be read (%(kind)s).") % {"path": path, "kind": type(error).__name__},
            hint=make,
        ) from None
    try:
        secret = bytes.fromhex(text) if len(text) == 64 else b64decode_any(text)
    except (ValueError, InvalidInput):
        secret = b""
    if len(secret) < KEY_MATERIAL_BYTES:
        raise KeyStoreError(
            _("The seal key file %(path)s is empty, truncated, or not 32 bytes in hex or base64.") % {"path": path},
            hint=make,
        )
    return secret


def seal_keys(device: LocalDevice | None = None) -> SealKeys:
    """Return the keys of the sealed list: those of the first secret, with which a new list is sealed.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: as for :func:`all_seal_keys`.
    """
    return all_seal_keys(device)[0]


def all_seal_keys(device: LocalDevice | None = None) -> tuple[SealKeys, ...]:
    """Return the keys that the list may be sealed with. Those of this server are derived once per process (HKDF, RFC 5869).

    There are several only while the secret is being replaced (``AMESH["SEAL_KEY_FILES"]``).

    Args:
        device: a device that is not in place yet; its keys are derived at each call. Defaults to this server's own.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: a secret cannot be read or unlocked.
    """
    global _keys, _failure
    if device is not None:
        return tuple(_derive(*secret) for secret in _seal_secrets(device))
    found = _keys  # another thread may forget them at any time
    if found is not None:
        return found
    with _keys_lock:
        if _failure is not None and time.monotonic() < _failure[0]:
            raise copy.copy(_failure[1])
        found = _keys
        if found is None:
            try:
                secrets = _seal_secrets()
            except KeyStoreError as error:
                _failure = (time.monotonic() + _PAUSE_SECONDS, error)
                raise
            _keys = found = tuple(_derive(*secret) for secret in secrets)
    return found


def _derive(secret: bytes, owner: str) -> SealKeys:
    def derive(label: bytes, count: int) -> list[bytes]:
        found = hkdf_sha256(secret, salt=label, info=owner.encode(), length=32 * count)
        return [found[start : start + 32] for start in range(0, len(found), 32)]

    hash_key, seal = derive(b"amesh-allow-list-database-v1", 2)
    high_water, counter = derive(b"amesh-newest-list-v1", 2)
    enrollment, tokens = derive(b"amesh-enrollment-v1", 2)
    (audit,), (chain,) = derive(b"amesh-audit-event-v1", 1), derive(b"amesh-audit-chain-v1", 1)
    (feed,) = derive(b"amesh-feed-v1", 1)
    (pairing,) = derive(b"amesh-pairing-v1", 1)
    return SealKeys(hash_key, seal, audit, chain, high_water, counter, enrollment, tokens, feed, pairing, owner)


def _seal_secrets(device: LocalDevice | None = None) -> list[tuple[bytes, str]]:
    found = []
    for path in amesh_settings().seal_secrets:
        if path is not None:
            found.append((read_seal_key_file(expanded(path)), SHARED_OWNER))
        else:
            own = device or open_device()
            found.append((own.seal_secret(), own.identity.device_id))
    return found


def reset() -> None:
    """Forget the keys."""
    global _keys, _failure
    with _keys_lock:
        _keys = _failure = None
