"""Helpers for the tests of projects that use amesh: signed test clients, throw-away devices and pytest fixtures.

- :mod:`.client` and :mod:`.drf` have the signed test clients of Django and of REST framework.
- :mod:`.devices` has the devices that sign.
- :mod:`.plugin` has the pytest fixtures, which pytest finds as soon as the package is installed.

Importing this package does not import Django.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AmeshAsyncClient, AmeshClient
    from .devices import EphemeralDevice
    from .drf import AmeshAPIClient

__all__ = ["AmeshAPIClient", "AmeshAsyncClient", "AmeshClient", "EphemeralDevice"]


_MODULES = {
    "AmeshAPIClient": "drf",
    "AmeshAsyncClient": "client",
    "AmeshClient": "client",
    "EphemeralDevice": "devices",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: pytest loads this package in projects without Django, too."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
