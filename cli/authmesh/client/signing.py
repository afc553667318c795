"""The Authorization header of one request, and the device that signs by default."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Protocol

import anyio.to_thread
import httpx

from authmesh.device import Identity, LocalDevice, default_directory
from authmesh.device.replacing import read_replacement
from authmesh.device.servers import ServerStore
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.canonical import target_ambiguity
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import InvalidInput, KeyStoreError
from authmesh.protocol.header import SCHEME, build_authorization
from authmesh.protocol.schemes.registry import SCHEMES

from . import enrolling
from .origins import Origin

logger = logging.getLogger("amesh_django.client")

VERSION = "1"
#: Length of a nonce, in bytes.
NONCE_BYTES = 16
#: Seconds that the first request waits until this device is enrolled by its bootstrap token.
BOOTSTRAP_SECONDS = 8.0
#: Start of the Authorization header of a signed request.
PREFIX = f"{SCHEME} "

#: Each default device, and the mark of the identity.json that it was opened with.
_devices: dict[Path, tuple[tuple[int, ...], LocalDevice]] = {}
#: The mark of each rotation.json, the old device, and the origins of the servers that know only its old key.
_replaced: dict[Path, tuple[tuple[int, ...], LocalDevice | None, frozenset[Origin]]] = {}
_lock = ForkSafeLock()


class Signer(Protocol):
    """A device that can sign: a :class:`~authmesh.device.LocalDevice`, or an ``EphemeralDevice`` in tests."""

    @property
    def identity(self) -> Identity:
        """The identity of the device."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature of *message*: ``r || s``, low-S, 64 bytes."""
        ...


def default_device(asked: Origin | None = None) -> LocalDevice:
    """Return the device of ``AUTH_MESH_DIR`` (``~/.amesh``). It is opened, and its key unlocked, once per process and directory, and
    again after its key was replaced.

    If the directory has no identity and ``AMESH_BOOTSTRAP_TOKEN`` has a bootstrap token, a thread enrols this device with the token,
    and this function waits a few seconds for it. Async code calls :func:`default_device_async`, which does not block the event loop.

    Args:
        asked: origin of the request. While the key is replaced, a server that has not accepted the new one gets the old one.

    Raises:
        BootstrapPending: the device is not enrolled yet; the message has the reason. A subclass of IdentityMissing.
        BootstrapFailed: the device cannot be enrolled with this token; its code has the reason. A subclass of IdentityMissing.
        IdentityMissing: the directory has no identity.
        DirectoryError, BackendUnavailable: the identity cannot be read, or its key store cannot be used on this machine.
    """
    path = default_directory().absolute()
    mark = _mark(path)
    known = _devices.get(path)
    if known is None or (mark and known[0] != mark):
        if known is None:
            _enrol(path)
        with _lock:
            known = _devices.get(path)
            mark = _mark(path)
            if known is None or (mark and known[0] != mark):
                known = _devices[path] = (mark, LocalDevice(path))
    return known[1] if asked is None else _old_device(path, asked) or known[1]


def _old_device(path: Path, asked: Origin) -> LocalDevice | None:
    """Return this device with its old key if the server of a request has not accepted the new one."""
    mark = _mark(path, "rotation.json")
    if not mark:
        return None
    known = _replaced.get(path)
    if known is None or known[0] != mark:
        with _lock:
            found = read_replacement(path)
            if found is None or not found.accepted:
                known = (mark, None, frozenset[Origin]())
            else:
                servers = ServerStore(path).read()
                old = {enrolling.origin_of(one.url) for one in servers if one.device_id not in found.accepted}
                new = {enrolling.origin_of(one.url) for one in servers if one.device_id in found.accepted}
                known = (mark, LocalDevice(path, identity=found.old), frozenset(old - new))
            _replaced[path] = known
    return known[1] if asked in known[2] else None


def _mark(path: Path, name: str = "identity.json") -> tuple[int, ...]:
    """Return what changes if a file is replaced; nothing if it cannot be examined."""
    try:
        found = (path / name).stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


async def default_device_async(asked: Origin | None = None) -> Signer:
    """Return the device of ``AUTH_MESH_DIR``. If it must be enrolled first, a thread waits for that.

    Args:
        asked: as for :func:`default_device`.

    Raises:
        IdentityMissing, DirectoryError, BackendUnavailable: as for :func:`default_device`.
    """
    path = default_directory().absolute()
    if path not in _devices and os.environ.get(TOKEN_VARIABLE):
        # Like httpx, this works with asyncio and trio.
        await anyio.to_thread.run_sync(_enrol, path, abandon_on_cancel=True)
    return default_device(asked)


def _enrol(path: Path) -> None:
    """Enrol this device if it has a bootstrap token and no identity."""
    has_identity = (path / "identity.json").exists()
    if has_identity and not os.environ.get(TOKEN_VARIABLE):
        return
    # Imported here because loading pairing takes time, and most processes never enrol.
    from authmesh.pairing.bootstrap import background
    from authmesh.pairing.bootstrap.enrolment import Enrolment, allowed_relays

    if has_identity:
        background.ignore_token(path)
        return
    background.ensure_identity(
        lambda: Enrolment(directory=path, relays=allowed_relays()), path, patience=BOOTSTRAP_SECONDS
    )


def enroll_default_device(asked: Origin) -> None:
    """Enroll the default device if ``AMESH_ENROLL_TOKEN`` has a token of the server that a request goes to.

    Args:
        asked: origin of the request.

    Raises:
        EnrollmentError, RequestError: the device was not enrolled.
        DirectoryError, KeyStoreError, AllowListError: this device cannot make an identity, sign, or store.
    """
    if enrolling.is_due():
        enrolling.enroll_first(asked, default_directory().absolute())


async def enroll_default_device_async(asked: Origin) -> None:
    """Do the same as :func:`enroll_default_device`, in a thread.

    Raises:
        AmeshError: as for :func:`enroll_default_device`.
    """
    if enrolling.is_due():
        await anyio.to_thread.run_sync(enroll_default_device, asked, abandon_on_cancel=True)


def forget_devices() -> None:
    """Close all default devices, so that the next call opens them again: after ``init --force`` in this process, and in tests."""
    with _lock:
        _devices.clear()
        _replaced.clear()


def sign_request(
    signer: Signer, *, method: str, target: str, body_hash: str, now: float, nonce: str | None = None
) -> str:
    """Return the header value for a request whose parts are given as they are sent.

    Args:
        signer: the device that signs.
        method: HTTP method.
        target: path and query exactly as on the request line.
        body_hash: lower-case hex SHA-256 of the raw body.
        now: Unix seconds.
        nonce: 1–64 characters of base64url. Defaults to a fresh one.

    Raises:
        InvalidInput: a part has a line break, or the nonce or time does not have the form of protocol.md §2.
        KeyStoreError: the key cannot be used.
    """
    ambiguity = target_ambiguity(target)
    if ambiguity:
        logger.warning(
            "Servers reject this target because parsers can disagree about it (%s): %r",
            ambiguity,
            target.partition("?")[0],
        )
    nonce = nonce or b64url_encode(os.urandom(NONCE_BYTES))
    timestamp = int(now)
    message = SCHEMES[VERSION].signed_message(
        method=method, target=target, timestamp=str(timestamp), nonce=nonce, body_hash=body_hash
    )
    try:
        signature = signer.sign(message)
    except KeyStoreError:
        renewed = signer.renewed() if isinstance(signer, LocalDevice) else None
        if renewed is None:
            raise
        signer, signature = renewed, renewed.sign(message)  # its key was replaced after it was opened
    return build_authorization(
        public_key=signer.identity.public_key,
        timestamp=timestamp,
        nonce=nonce,
        signature=signature,
        version=VERSION,
    )


def _target_of(url: str | httpx.URL) -> str:
    try:
        parsed = httpx.URL(url)
        if parsed.host:
            return parsed.raw_path.decode("ascii")
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise InvalidInput("This is not a URL.", hint="Use https://HOST/PATH, or only the target, which starts with '/'.")


def authorization_header(
    method: str,
    url: str | httpx.URL,
    body: bytes | str = b"",
    *,
    device: Signer | None = None,
    now: float | None = None,
    nonce: str | None = None,
) -> str:
    """Return the value of the Authorization header for one request that another program sends.

    Args:
        method: HTTP method.
        url: a URL, signed as httpx would send it (non-ASCII characters and spaces percent-encoded, ``/a/../b`` resolved); or only
            the target, starting with ``/``, signed unchanged. Send exactly that.
        body: the raw body; text is encoded as UTF-8.
        device: the device that signs. Defaults to :func:`default_device`.
        now: Unix seconds. Defaults to the current time.
        nonce: 1–64 characters of base64url that were never used before. Defaults to fresh ones.

    Returns:
        ``AuthMesh v="1",id=…``, valid for one request within 30 seconds.

    Raises:
        InvalidInput: not a URL, a line break, or a nonce or time that does not have the form of protocol.md §2.
        IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
    """
    target = url if isinstance(url, str) and url.startswith("/") else _target_of(url)
    asked = enrolling.origin_of_text(url)
    if device is None and asked is not None:
        enroll_default_device(asked)
    raw = body.encode() if isinstance(body, str) else body
    return sign_request(
        device or default_device(asked),
        method=method,
        target=target,
        body_hash=hashlib.sha256(raw).hexdigest(),
        now=time.time() if now is None else now,
        nonce=nonce,
    )
