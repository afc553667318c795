"""This server as a device: its identity, its enrolment by a bootstrap token, and the list in which that stores the controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections

from authmesh.device import LocalDevice
from authmesh.device.allow_list import limit_reached
from authmesh.pairing.bootstrap import background as first
from authmesh.pairing.bootstrap.enrolment import Enrolment, allowed_relays
from authmesh.pairing.bootstrap.staging import Trust
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry

from .allow_list import DatabaseAllowList
from .conf import AmeshSettings, amesh_settings
from .trust.owner import open_device, server_directory

__all__ = ["server_device"]

#: Seconds that a first request waits until this server is enrolled.
BOOTSTRAP_SECONDS = 5.0

#: The settings under which an identity was found: requests do not look for it again.
_settled: AmeshSettings | None = None


def server_device() -> LocalDevice:
    """Return this server's own device, from ``AMESH["DIR"]``. Its key is unlocked once per process.

    If there is no identity but a bootstrap token in ``AMESH_BOOTSTRAP_TOKEN``, a thread enrols this server with the token, and this
    function waits a few seconds for it.

    Raises:
        BootstrapPending, BootstrapFailed: there is no identity yet, or none can be made with this token. Both are IdentityMissing.
        IdentityMissing, DirectoryError, KeyStoreError: as for :class:`authmesh.device.LocalDevice`.
    """
    ensure_identity()
    return open_device()


class DatabaseTrust(Trust):
    """Stores the controller of a new identity in the database.

    The list is sealed with the key of the identity that is not in place yet (unless several hosts share a seal secret), and only
    then ``identity.json`` is put in place. Until then this server has no key, and rejects all requests.

    Args:
        by: who makes the change, for the audit log.
    """

    def __init__(self, by: str = "bootstrap token") -> None:
        self._by = by

    def check(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """Raise an error now if :meth:`add` would raise one later. A list that another identity has sealed is such an error.

        Raises:
            AllowListError: the list does not match its seal, or has as many controllers as it may have.
        """
        allow_list = DatabaseAllowList(by=self._by, device=device)
        known = allow_list.find(controller.public_key)
        is_counted = known is not None and known.role == CONTROLLER
        if not is_counted and allow_list.count(CONTROLLER) >= allow_list.controller_limit:
            raise limit_reached(allow_list.controller_limit, 'AMESH["MAX_CONTROLLERS"]')

    def add(self, device: LocalDevice, controller: DeviceEntry) -> None:
        DatabaseAllowList(by=self._by, device=device, attended=False).add(controller)


def pinned_relays() -> Sequence[str] | None:
    """Return the relays that a token may name on this server; None means any."""
    pinned = amesh_settings().BOOTSTRAP_RELAYS
    return allowed_relays() if pinned is None else pinned


def server_enrolment(**options: Any) -> Enrolment:
    """Return how this server is enrolled.

    Args:
        options: attributes of :class:`Enrolment` that replace those of the settings.

    Raises:
        ImproperlyConfigured: ``AMESH`` is not valid.
    """
    return Enrolment(
        **{"directory": server_directory(), "trust": DatabaseTrust(), "relays": pinned_relays(), **options}
    )


def ensure_identity() -> None:
    """Enrol this server if there is a bootstrap token and no identity. Waits a few seconds at most.

    Raises:
        BootstrapPending, BootstrapFailed: there is no identity yet, or none can be made with this token.
    """
    global _settled
    if amesh_settings() is _settled:
        return
    directory = server_directory()
    if (directory / "identity.json").exists():
        first.ignore_token(directory)
        _settled = amesh_settings()
        return
    first.ensure_identity(server_enrolment, directory, patience=BOOTSTRAP_SECONDS, after=_close_connections)


def _close_connections() -> None:
    """Close the database connections of the thread that ends."""
    connections.close_all()
