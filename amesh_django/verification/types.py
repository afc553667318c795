"""The types that pass between the modules of verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from amesh_django.states import State
from authmesh.protocol.scopes import covers

#: Returns the SHA-256 of the raw body in lower-case hex, or raises a RequestError.
BodyHash = Callable[[], str]


@dataclass(frozen=True, slots=True)
class VerifiedDevice:
    """The device that signed a request: ``request.amesh``, and ``request.auth`` in REST framework.

    Attributes:
        device_id: device ID (``am_…``), from the allow list.
        friendly_name: name, from the allow list. The device chose it itself, so escape it when you show it.
        verified_at: Unix seconds, from the clock of the server.
        role: role, from the allow list; always ``controller``, except for a server that asks its hub.
        permissions: name → value, from the allow list, such as ``{"shell": True}``.
        public_key: 33 bytes (compressed point), from the header of the request.
        user_id: primary key of the mapped Django user, from the allow list; None if there is none.
        pk: primary key of the ``Device`` row; None if the list is not in the database.
        clock_skew: seconds by which the clock of the device is ahead of the clock of the server; negative if it is behind.
        scopes: scopes, from the allow list, such as ``orders:read`` or ``orders:*``.
        expires_at: Unix seconds from which its key is expired, from the allow list; None if it does not expire.
        rotation_requested: True if a person asked the device to replace its key, and it has not.
    """

    device_id: str
    friendly_name: str
    verified_at: int
    role: str
    permissions: Mapping[str, Any] = field(default_factory=dict, hash=False)
    public_key: bytes = b""
    user_id: Any = None
    pk: int | None = None
    clock_skew: int = 0
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    rotation_requested: bool = False

    def __reduce__(self) -> tuple[type[VerifiedDevice], tuple[Any, ...]]:
        """Make copies and pickles possible, for caches and tasks: the permissions of the allow list are a read-only view."""
        values = [getattr(self, member.name) for member in fields(self)]
        return type(self), tuple(dict(value) if isinstance(value, Mapping) else value for value in values)

    def has_permission(self, name: str) -> bool:
        """Return True if the allow list grants a permission to the device.

        Args:
            name: name of the permission, such as ``shell``. Its value must be True.
        """
        return self.permissions.get(name) is True

    def has_scope(self, name: str) -> bool:
        """Return True if one of the scopes of the device is, or covers, a scope.

        Args:
            name: a scope without ``*``, such as ``orders:read``.
        """
        return covers(self.scopes, name)


class TrustedKey(Protocol):
    """A device in the allow list, as the verifier needs it. Attributes as in :class:`VerifiedDevice`."""

    @property
    def device_id(self) -> str: ...
    @property
    def friendly_name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def permissions(self) -> Mapping[str, Any]: ...
    @property
    def scopes(self) -> frozenset[str]:
        """Its own scopes and those of its groups."""

    @property
    def expires_at(self) -> float | None: ...
    @property
    def rotation_requested(self) -> bool: ...
    @property
    def user_id(self) -> Any: ...
    @property
    def pk(self) -> int | None: ...

    def state(self, now: float) -> State:
        """Return the state of the device at a time (Unix seconds). Only ``active`` is accepted."""


#: Returns the device of a public key (33 bytes), or None if the allow list does not have it.
Lookup = Callable[[bytes], TrustedKey | None]


class NonceStore(Protocol):
    """A store that remembers nonces."""

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        """Store a nonce, in one atomic step with the check that it is new.

        Args:
            device_id: the device that used the nonce; two devices may use the same one.
            nonce: the nonce of the header.
            seconds: how long the nonce must be remembered.

        Returns:
            True if the nonce is new, False if it was used before.

        Raises:
            NonceStoreUnavailable: the store is full or cannot be reached.
        """
        ...
