"""A device: its identity, its keys, the requests that it signs, and the devices that it trusts. Needs no Django.

This module is the public face: ``from authmesh import fetch``. Each name is imported from its room when it is first used, so that
``import authmesh`` itself costs next to nothing and loads neither httpx nor cryptography.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AmeshAiohttpMiddleware, AmeshAuth, AmeshRequestsAuth, authorization_header, fetch
    from .device import FileAllowList, Identity, LocalDevice, init_device
    from .nonces import InMemoryNonceStore
    from .protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
    from .protocol.canonical import canonical_string
    from .protocol.errors import (
        AllowListError,
        AmeshError,
        DirectoryError,
        IdentityMissing,
        InvalidInput,
        KeyStoreError,
        NonceStoreUnavailable,
    )
    from .protocol.keys import (
        decode_public_key,
        device_id,
        encode_public_key,
        generate_private_key,
        load_private_key,
        load_public_key,
        public_key_bytes,
        sign,
        verify_signature,
    )
    from .protocol.pairing.codes import shared_secret
    from .protocol.pairing.v1 import session_key

__all__ = [
    "CONTROLLER",
    "TARGET",
    "AllowListError",
    "AmeshAiohttpMiddleware",
    "AmeshAuth",
    "AmeshError",
    "AmeshRequestsAuth",
    "DeviceEntry",
    "DirectoryError",
    "FileAllowList",
    "Identity",
    "IdentityMissing",
    "InMemoryNonceStore",
    "InvalidInput",
    "KeyStoreError",
    "LocalDevice",
    "NonceStoreUnavailable",
    "authorization_header",
    "canonical_string",
    "decode_public_key",
    "device_id",
    "encode_public_key",
    "fetch",
    "generate_private_key",
    "init_device",
    "load_private_key",
    "load_public_key",
    "public_key_bytes",
    "session_key",
    "shared_secret",
    "sign",
    "verify_signature",
]

_ROOMS = {
    "client": ("AmeshAiohttpMiddleware", "AmeshAuth", "AmeshRequestsAuth", "authorization_header", "fetch"),
    "device": ("FileAllowList", "Identity", "LocalDevice", "init_device"),
    "nonces": ("InMemoryNonceStore",),
    "protocol.allow_list": ("CONTROLLER", "TARGET", "DeviceEntry"),
    "protocol.canonical": ("canonical_string",),
    "protocol.errors": (
        "AllowListError",
        "AmeshError",
        "DirectoryError",
        "IdentityMissing",
        "InvalidInput",
        "KeyStoreError",
        "NonceStoreUnavailable",
    ),
    "protocol.keys": (
        "decode_public_key",
        "device_id",
        "encode_public_key",
        "generate_private_key",
        "load_private_key",
        "load_public_key",
        "public_key_bytes",
        "sign",
        "verify_signature",
    ),
    "protocol.pairing.codes": ("shared_secret",),
    "protocol.pairing.v1": ("session_key",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if not TYPE_CHECKING:  # a type checker must go by the imports above, and must notice a name that is not among them

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        if name not in _ROOM_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
