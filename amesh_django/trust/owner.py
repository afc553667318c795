"""The device whose key seals the list: this server's own, opened once per process."""

from __future__ import annotations

from pathlib import Path

from amesh_django.conf import amesh_settings
from authmesh.device import Identity, LocalDevice, default_directory, read_identity
from authmesh.files.locks import ForkSafeLock
from authmesh.files.storage import expanded
from authmesh.protocol.errors import IdentityMissing

_device_lock = ForkSafeLock()
_device: LocalDevice | None = None


def server_directory() -> Path:
    """Return the device directory of this server.

    Raises:
        ImproperlyConfigured: ``AMESH`` is not valid.
    """
    configured = amesh_settings().DIR
    return expanded(configured) if configured else default_directory()


def open_device() -> LocalDevice:
    """Return this server's own device, from ``AMESH["DIR"]``. Its key is unlocked once per process.

    This function never enrols the server; :func:`amesh_django.server.server_device` does.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: as for :class:`authmesh.device.LocalDevice`.
    """
    global _device
    if _device is None:
        with _device_lock:
            if _device is None:
                _device = LocalDevice(amesh_settings().DIR)
    return _device


def own_identity() -> Identity | None:
    """Return the identity of this server, or None if it has none. It needs none if several hosts share a seal secret.

    Raises:
        DirectoryError: the identity cannot be read.
    """
    if _device is not None:
        return _device.identity
    try:
        return read_identity(server_directory())
    except IdentityMissing:
        return None


def controller_limit(device: LocalDevice | None = None) -> int:
    """Return how many controllers may be trusted: ``AMESH["MAX_CONTROLLERS"]``, or ``maxControllers`` of the identity.

    Args:
        device: the device whose identity counts. Defaults to this server's own.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: as for :func:`open_device`.
    """
    limit = amesh_settings().MAX_CONTROLLERS
    return limit if limit is not None else (device or open_device()).identity.controller_limit


def reset() -> None:
    """Forget the device."""
    global _device
    with _device_lock:
        _device = None
