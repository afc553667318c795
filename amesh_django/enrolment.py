"""Enrolment of this server by a bootstrap token: into the sealed list of the database, at deploy time or on the first request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from amesh_django.device import LocalDevice, default_directory
from amesh_django.device.allow_list import limit_reached
from amesh_django.device.storage import expanded
from amesh_django.pairing import bootstrap_first as first
from amesh_django.pairing.bootstrap_enrolment import Enrolment, allowed_relays
from amesh_django.pairing.bootstrap_staging import Trust
from amesh_django.protocol.allow_list import CONTROLLER, DeviceEntry

from .conf import AmeshSettings, amesh_settings

#: How long a first request waits for this server to be enrolled, in seconds.
BOOTSTRAP_SECONDS = 5.0

#: Which device the code that runs here speaks for, where that is not the one in the directory.
_acting: ContextVar[LocalDevice | None] = ContextVar("amesh_acting", default=None)
_paused: ContextVar[bool] = ContextVar("amesh_bootstrap_paused", default=False)
#: The settings under which there was an identity already: requests do not look for it again.
_settled: AmeshSettings | None = None


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


@contextmanager
def not_by_itself() -> Iterator[None]:
    """Inside the block a missing identity is just missing: a command enrols this server only if that is what it is for."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


class DatabaseTrust(Trust):
    """Stores the controller of a new identity in the database.

    The list there is sealed with the key of the identity that is still aside (unless several hosts share a seal secret), before
    ``identity.json`` is put in place. Until then this server knows no key, and lets nobody in.

    Args:
        by: who does it, for the journal.
    """

    def __init__(self, by: str = "bootstrap token") -> None:
        self._by = by

    def _allow_list(self) -> Any:
        from .allow_list import DatabaseAllowList

        return DatabaseAllowList(by=self._by)

    def check(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """See :class:`Trust`. A list that another identity has sealed does not hold."""
        with acting_as(device):
            allow_list = self._allow_list()
            known = allow_list.find(controller.public_key)
            is_counted = known is not None and known.role == CONTROLLER
            if not is_counted and allow_list.count(CONTROLLER) >= allow_list.controller_limit:
                raise limit_reached(allow_list.controller_limit, 'AMESH["MAX_CONTROLLERS"]')

    def add(self, device: LocalDevice, controller: DeviceEntry) -> None:
        """See :class:`Trust`."""
        with acting_as(device):
            self._allow_list().add(controller)


def pinned_relays() -> Sequence[str] | None:
    """The relays that a token may name here; None means any."""
    pinned = amesh_settings().BOOTSTRAP_RELAYS
    return allowed_relays() if pinned is None else pinned


def server_enrolment(**options: Any) -> Enrolment:
    """How this server is enrolled.

    Args:
        options: members of :class:`Enrolment` that are to be others.

    Raises:
        ImproperlyConfigured: ``AMESH`` is wrong.
    """
    return Enrolment(
        **{"directory": server_directory(), "trust": DatabaseTrust(), "relays": pinned_relays(), **options}
    )


def ensure_identity() -> None:
    """Be enrolled, where there is a token and no identity. Waits for a few seconds at most.

    Raises:
        BootstrapPending, BootstrapFailed: there is no identity yet, or never with this token.
    """
    global _settled
    if amesh_settings() is _settled or _paused.get() or acting_device() is not None:
        return
    directory = server_directory()
    if (directory / "identity.json").exists():
        first.ignore_token(directory)
        _settled = amesh_settings()
        return
    first.ensure_identity(server_enrolment, directory, patience=BOOTSTRAP_SECONDS, after=_close_connections)


def _close_connections() -> None:
    """Those of the thread that ends."""
    from django.db import connections

    connections.close_all()
