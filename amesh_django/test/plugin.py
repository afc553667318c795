"""pytest fixtures: a throw-away server, a device, a device that the server trusts, and clients that sign as that device.

pytest loads this module in every project of an environment in which the package is installed, before Django is set up and in
projects without Django. So it imports Django, and all that is slow to import, only in a fixture that is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from amesh_django import test as amesh

if TYPE_CHECKING:
    from authmesh.device import LocalDevice
    from authmesh.protocol import Role

    from .client import AmeshAsyncClient, AmeshClient
    from .devices import EphemeralDevice
    from .drf import AmeshAPIClient


@pytest.fixture
def amesh_device() -> EphemeralDevice:
    """A new device, which is not trusted yet."""
    return amesh.EphemeralDevice()


@pytest.fixture
def amesh_server(tmp_path_factory: pytest.TempPathFactory, settings: Any) -> Iterator[LocalDevice]:
    """The server of the project, with a new identity in a temporary directory, for 100 controllers. Needs pytest-django.

    It writes neither "last seen" nor counts of requests, unless ``AMESH["LAST_SEEN_SECONDS"]`` or ``AMESH["COUNT_REQUESTS"]`` is set:
    with Django's async test client, another thread would write them, outside the transaction of the test.
    """
    from amesh_django import lifecycle

    path = tmp_path_factory.mktemp("amesh_server")
    device = amesh.EphemeralDevice("test server").write(path, max_controllers=100)
    project = getattr(settings, "AMESH", {})
    settings.AMESH = {
        "LAST_SEEN_SECONDS": 0,
        "COUNT_REQUESTS": False,
        **project,
        "DIR": str(path),
        "SEAL_KEY_FILE": None,
        "SEAL_KEY_FILES": None,
    }
    lifecycle.reset()
    yield device
    lifecycle.reset()


@pytest.fixture
def amesh_trust(db: None, amesh_server: LocalDevice) -> Callable[..., EphemeralDevice]:
    """A function that trusts a device: ``amesh_trust(device=None, role="controller", permissions=None)`` returns the device."""
    from amesh_django.allow_list import DatabaseAllowList

    def trust(
        device: EphemeralDevice | None = None,
        role: Role = "controller",
        permissions: Mapping[str, Any] | None = None,
    ) -> EphemeralDevice:
        device = device or amesh.EphemeralDevice()
        DatabaseAllowList().add(device.entry(role, permissions=permissions))
        return device

    return trust


@pytest.fixture
def amesh_trusted_device(amesh_trust: Callable[..., EphemeralDevice], amesh_device: EphemeralDevice) -> EphemeralDevice:
    """``amesh_device``, which the server trusts as a controller."""
    return amesh_trust(amesh_device)


@pytest.fixture
def amesh_client(amesh_trusted_device: EphemeralDevice) -> AmeshClient:
    """Django's test client, which signs as the trusted device."""
    return amesh.AmeshClient(amesh_trusted_device)


@pytest.fixture
def amesh_async_client(amesh_trusted_device: EphemeralDevice) -> AmeshAsyncClient:
    """Django's async test client, which signs as the trusted device."""
    return amesh.AmeshAsyncClient(amesh_trusted_device)


@pytest.fixture
def amesh_api_client(amesh_trusted_device: EphemeralDevice) -> AmeshAPIClient:
    """REST framework's test client, which signs as the trusted device."""
    return amesh.AmeshAPIClient(amesh_trusted_device)
