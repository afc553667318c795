"""The Authorization header of one request, and which device signs where none is named."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Protocol

import httpx

from authmesh.device import Identity, LocalDevice, default_directory
from authmesh.device.tokens import TOKEN_VARIABLE
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.canonical import target_ambiguity
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.header import SCHEME, build_authorization
from authmesh.protocol.schemes.registry import SCHEMES

logger = logging.getLogger("amesh_django.client")

VERSION = "1"
#: Length of a nonce, in bytes.
NONCE_BYTES = 16
#: How long a first request waits for this device to be enrolled by its bootstrap token, in seconds.
BOOTSTRAP_SECONDS = 8.0
#: What the header of a signed request begins with.
PREFIX = f"{SCHEME} "

_devices: dict[Path, LocalDevice] = {}
_lock = ForkSafeLock()


class Signer(Protocol):
    """What signs: a :class:`~authmesh.device.LocalDevice`, or in tests an ``EphemeralDevice``."""

    @property
    def identity(self) -> Identity:
        """Who signs."""
        ...

    def sign(self, message: bytes) -> bytes:
        """``r || s``, low-S, 64 bytes."""
        ...


def default_device() -> LocalDevice:
    """The device of ``AUTH_MESH_DIR`` (``~/.amesh``), opened once per process and directory, its key unlocked once.

    Where there is no identity but a bootstrap token in ``AMESH_BOOTSTRAP_TOKEN``, a thread enrols this device with it; that is waited
    for a few seconds. Async code calls :func:`default_device_async`, which does not block the loop.

    Raises:
        BootstrapPending: it is not enrolled yet; the sentence says why. Both this and the next are IdentityMissing.
        BootstrapFailed: it can't be enrolled with this token; its code says why.
        IdentityMissing: there is no identity in the directory.
        DirectoryError, BackendUnavailable: it can't be read, or its key store can't be used here.
    """
    path = default_directory().absolute()
    device = _devices.get(path)
    if device is None:
        _bootstrap(path)
        with _lock:
            device = _devices.get(path)
            if device is None:
                device = _devices[path] = LocalDevice(path)
    return device


async def default_device_async() -> Signer:
    """As :func:`default_device`; waits in a thread where there is something to be waited for.

    Raises:
        IdentityMissing, DirectoryError, BackendUnavailable: as :func:`default_device`.
    """
    path = default_directory().absolute()
    if path not in _devices and os.environ.get(TOKEN_VARIABLE):
        import anyio.to_thread  # asyncio and trio, as httpx itself

        await anyio.to_thread.run_sync(_bootstrap, path, abandon_on_cancel=True)
    return default_device()


def _bootstrap(path: Path) -> None:
    """Be enrolled, where there is a token and no identity."""
    # What only this needs is not loaded by programs that never do.
    if not os.environ.get(TOKEN_VARIABLE) and (path / "identity.json").exists():
        return
    from authmesh.pairing.bootstrap import background as first
    from authmesh.pairing.bootstrap.enrolment import Enrolment, allowed_relays

    if (path / "identity.json").exists():
        first.ignore_token(path)
        return
    first.ensure_identity(lambda: Enrolment(directory=path, relays=allowed_relays()), path, patience=BOOTSTRAP_SECONDS)


def forget_devices() -> None:
    """Open the default device anew when it is next needed: after ``init --force`` in the same process, and in tests."""
    with _lock:
        _devices.clear()


def sign_request(
    signer: Signer, *, method: str, target: str, body_hash: str, now: float, nonce: str | None = None
) -> str:
    """The header value for a request whose parts are as they go over the wire.

    Args:
        signer: whose key signs.
        method: HTTP method.
        target: path and query exactly as on the request line.
        body_hash: lower-case hex SHA-256 of the raw body.
        now: Unix seconds.
        nonce: 1–64 characters of base64url; None makes a fresh one.

    Raises:
        InvalidInput: a line break in a part, or a nonce or time that has not the form of protocol.md §2.
        KeyStoreError: the key can't be used.
    """
    ambiguity = target_ambiguity(target)
    if ambiguity:
        logger.warning("Servers refuse this target, which two parsers can read differently (%s): %r", ambiguity, target)
    nonce = nonce or b64url_encode(os.urandom(NONCE_BYTES))
    timestamp = int(now)
    message = SCHEMES[VERSION].signed_message(
        method=method, target=target, timestamp=str(timestamp), nonce=nonce, body_hash=body_hash
    )
    return build_authorization(
        public_key=signer.identity.public_key,
        timestamp=timestamp,
        nonce=nonce,
        signature=signer.sign(message),
        version=VERSION,
    )


def _target_of(url: str | httpx.URL) -> str:
    try:
        parsed = httpx.URL(url)
        if parsed.host:
            return parsed.raw_path.decode("ascii")
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise InvalidInput("This is not a URL. Write https://HOST/PATH, or just the target, which begins with '/'.")


def authorization_header(
    method: str,
    url: str | httpx.URL,
    body: bytes | str = b"",
    *,
    device: Signer | None = None,
    now: float | None = None,
    nonce: str | None = None,
) -> str:
    """The value of the Authorization header for one request that something else sends.

    Args:
        method: HTTP method.
        url: a URL, signed as httpx would send it (non-ASCII and spaces percent-encoded, ``/a/../b`` resolved); or just the
            target, beginning with ``/``, signed as it stands. Send exactly that.
        body: the raw body; text is taken as UTF-8.
        device: who signs; None is :func:`default_device`.
        now: Unix seconds; None asks the clock.
        nonce: 1–64 characters of base64url, never used before; None makes a fresh one.

    Returns:
        ``AuthMesh v="1",id=…``, good for one request within 30 seconds.

    Raises:
        InvalidInput: not a URL, a line break, or a nonce or time that has not the form of protocol.md §2.
        IdentityMissing, DirectoryError, KeyStoreError: the device can't be opened or its key can't be used.
    """
    target = url if isinstance(url, str) and url.startswith("/") else _target_of(url)
    raw = body.encode() if isinstance(body, str) else body
    return sign_request(
        device or default_device(),
        method=method,
        target=target,
        body_hash=hashlib.sha256(raw).hexdigest(),
        now=time.time() if now is None else now,
        nonce=nonce,
    )
