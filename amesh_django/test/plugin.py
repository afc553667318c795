"""pytest fixtures: a throw-away server, a device, one that the server trusts, and clients that it signs for.

Loaded by pytest wherever the package is installed, so nothing of Django is imported before a fixture asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from authmesh.device import LocalDevice
    from authmesh.protocol import Role

    from .client import AmeshAsyncClient, AmeshClient
    from .devices import EphemeralDevice
    from .drf import AmeshAPIClient


@pytest.fixture
def amesh_device() -> EphemeralDevice:
    """A new device that nobody trusts yet."""
    from .devices import EphemeralDevice

    return EphemeralDevice()


@pytest.fixture
def amesh_server(tmp_path_factory: pytest.TempPathFactory, settings: Any) -> Iterator[LocalDevice]:
    """This project's server with a new identity in a temporary directory; takes 100 controllers. Needs pytest-django.

    It notes no "last seen" unless ``AMESH["LAST_SEEN_SECONDS"]`` says so: Django's async test client would have that written by
    a thread of its own, beside the transaction of the test.
    """

    from amesh_django import lifecycle

    from .devices import EphemeralDevice

    path = tmp_path_factory.mktemp("amesh_server")
    device = EphemeralDevice("test server").write(path, max_controllers=100)
    theirs = getattr(settings, "AMESH", {})
    settings.AMESH = {"LAST_SEEN_SECONDS": 0, **theirs, "DIR": str(path), "SEAL_KEY_FILE": None}
    lifecycle.reset()
    yield device
    lifecycle.reset()


@pytest.fixture
def amesh_trust(db: None, amesh_server: LocalDevice) -> Callable[..., EphemeralDevice]:
    """``amesh_trust(device=None, role="controller", permissions=None)`` adds a device to the allow list and returns it."""
    from amesh_django.allow_list import DatabaseAllowList

    from .devices import EphemeralDevice

    def trust(
        device: EphemeralDevice | None = None,
        role: Role = "controller",
        permissions: Mapping[str, Any] | None = None,
    ) -> EphemeralDevice:
        device = device or EphemeralDevice()
        DatabaseAllowList().add(device.entry(role, permissions=permissions))
        return device

    return trust


@pytest.fixture
def amesh_trusted_device(amesh_trust: Callable[..., EphemeralDevice], amesh_device: EphemeralDevice) -> EphemeralDevice:
    """``amesh_device``, trusted as a controller."""
    return amesh_trust(amesh_device)


@pytest.fixture
def amesh_client(amesh_trusted_device: EphemeralDevice) -> AmeshClient:
    """Django's test client, signed by the trusted device."""
    from .client import AmeshClient

    return AmeshClient(amesh_trusted_device)


@pytest.fixture
def amesh_async_client(amesh_trusted_device: EphemeralDevice) -> AmeshAsyncClient:
    """Django's async test client, signed by the trusted device."""
    from .client import AmeshAsyncClient

    return AmeshAsyncClient(amesh_trusted_device)


@pytest.fixture
def amesh_api_client(amesh_trusted_device: EphemeralDevice) -> AmeshAPIClient:
    """REST framework's test client, signed by the trusted device."""
    from .drf import AmeshAPIClient

    return AmeshAPIClient(amesh_trusted_device)
