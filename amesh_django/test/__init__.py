"""SECOND: for the tests of projects that use amesh: signed test clients, throw-away devices, pytest fixtures.

The fixtures (:mod:`amesh_django.test.plugin`) are there once the package is installed. Importing this package imports no Django.
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
    """Each is imported when it is first asked for: pytest loads this package in projects without Django too."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
