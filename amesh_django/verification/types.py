"""What passes between the parts of verification: the verified device, and what the verifier asks of its list and its store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

BodyHash = Callable[[], str]


@dataclass(frozen=True, slots=True)
class VerifiedDevice:
    """Who signed the request. This is ``request.amesh``.

    Attributes:
        device_id: ``am_…``.
        friendly_name: as it stands in the allow list. Escape it where it is shown.
        verified_at: Unix seconds.
        role: ``controller``.
        permissions: name → value, such as ``{"shell": True}``.
        public_key: 33 bytes.
        user_id: primary key of the mapped Django user, or None.
        pk: primary key of the Device row, or None.
        clock_skew: seconds by which the device's clock is ahead of ours; negative behind.
    """

    device_id: str
    friendly_name: str
    verified_at: int
    role: str
    permissions: Mapping[str, Any] = field(default_factory=dict)
    public_key: bytes = b""
    user_id: Any = None
    pk: int | None = None
    clock_skew: int = 0

    def has_permission(self, name: str) -> bool:
        """True if the allow list grants *name* (``{"shell": True}``)."""
        return self.permissions.get(name) is True


class TrustedKey(Protocol):
    """What the verifier asks an allow list for: the device of a key, if it has it."""

    @property
    def device_id(self) -> str: ...
    @property
    def friendly_name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def revoked(self) -> bool: ...
    @property
    def permissions(self) -> Mapping[str, Any]: ...
    @property
    def user_id(self) -> Any: ...
    @property
    def pk(self) -> int | None: ...


Lookup = Callable[[bytes], TrustedKey | None]


class NonceStore(Protocol):
    """Remembers nonces."""

    def record(self, device_id: str, nonce: str, seconds: int) -> bool:
        """Remember a nonce for *seconds*.

        Returns:
            True if it was new, False if it was seen.

        Raises:
            NonceStoreUnavailable: it can't be told.
        """
        ...
