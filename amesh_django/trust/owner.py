"""The device that owns the sealed list: this server's own, opened once per process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from amesh_django.conf import amesh_settings
from authmesh.device import Identity, LocalDevice, default_directory, read_identity
from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import expanded
from authmesh.protocol.errors import IdentityMissing

_device_lock = ForkSafeLock()
_device: LocalDevice | None = None

#: The device that the running code acts as, if that is not the one in the directory.
_acting: ContextVar[LocalDevice | None] = ContextVar("amesh_acting", default=None)


def server_directory() -> Path:
    """The device directory of this server.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    configured = amesh_settings().DIR
    return expanded(configured) if configured else default_directory()


def acting_device() -> LocalDevice | None:
    """The device that :func:`acting_as` names here."""
    return _acting.get()


@contextmanager
def acting_as(device: LocalDevice) -> Iterator[None]:
    """Inside the block this thread is *device*: what it stores is sealed with that key. For an identity that is not in place yet."""
    token = _acting.set(device)
    try:
        yield
    finally:
        _acting.reset(token)


def open_device() -> LocalDevice:
    """Return this server's own device, from ``AMESH["DIR"]``. Its key is unlocked once per process; it is never enrolled here.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: as :class:`authmesh.device.LocalDevice`.
    """
    global _device
    acting = acting_device()
    if acting is not None:
        return acting
    if _device is None:
        with _device_lock:
            if _device is None:
                _device = LocalDevice(amesh_settings().DIR)
    return _device


def own_identity() -> Identity | None:
    """Who this server is; None where it has no identity: it needs none if several hosts share a seal secret.

    Raises:
        DirectoryError: there is one, and it can't be read.
    """
    if _device is not None:
        return _device.identity
    try:
        return read_identity(server_directory())
    except IdentityMissing:
        return None


def controller_limit() -> int:
    """How many controllers may be trusted: ``AMESH["MAX_CONTROLLERS"]``, else ``maxControllers`` of the identity.

    Raises:
        IdentityMissing, DirectoryError: as :func:`open_device`.
    """
    limit = amesh_settings().MAX_CONTROLLERS
    return open_device().identity.controller_limit if limit is None else limit


def reset() -> None:
    """Forget the device."""
    global _device
    with _device_lock:
        _device = None
