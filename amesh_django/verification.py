"""The one verifier: (method, raw target, header, raw body) becomes a VerifiedDevice, or an error that says why not."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from amesh_django.protocol.allow_list import CONTROLLER
from amesh_django.protocol.canonical import target_ambiguity
from amesh_django.protocol.encoding import b64decode_any
from amesh_django.protocol.errors import (
    AllowListIntegrityFailure,
    DirectoryError,
    IdentityMissing,
    InvalidInput,
    KeyStoreError,
    MissingHeader,
    TimestampOutOfRange,
    Unauthorized,
    UnsupportedVersion,
)
from amesh_django.protocol.header import Authorization, parse_authorization
from amesh_django.protocol.keys import decode_public_key, device_id, load_public_key, verify_signature
from amesh_django.protocol.scheme import SCHEMES

from . import enrolment, server, snapshot
from .conf import amesh_settings
from .nonces import NonceStore, store_for

#: A skew above this, in seconds, that is still accepted is logged as ``clock_drift_warning``.
DRIFT_SECONDS = 20

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


@functools.lru_cache(maxsize=8192)
def _loaded_key(public_key: bytes) -> EllipticCurvePublicKey:
    return load_public_key(public_key)


def database_lookup(public_key: bytes) -> TrustedKey | None:
    """Look a key up in the sealed list of the database.

    Raises:
        AllowListIntegrityFailure: the list can't be verified.
    """
    try:
        # Before the list is looked at: enrolment by a bootstrap token changes it.
        if amesh_settings().SEAL_KEY_FILE is None:
            server.server_device()
        else:  # the list holds without an identity
            with suppress(IdentityMissing):
                enrolment.ensure_identity()
        return snapshot.current().by_key.get(public_key)
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(str(error), reason=error.code) from error


class Verifier:
    """Verifies requests (protocol.md §3). Nothing else in this package does a step of it.

    Args:
        lookup: finds the trusted device of a public key.
        nonces: remembers nonces.
        clock: Unix seconds.
        clock_skew: how far a device's clock may be off, seconds.
        nonce_window: how long a nonce is remembered, seconds; at least twice *clock_skew*.

    Raises:
        InvalidInput: the window is too short, so that a request could be replayed.
    """

    def __init__(
        self,
        *,
        lookup: Lookup,
        nonces: NonceStore,
        clock: Callable[[], float] = time.time,
        clock_skew: int = 30,
        nonce_window: int = 60,
    ) -> None:
        if nonce_window < 2 * clock_skew:
            raise InvalidInput("The nonce window must be at least twice the clock skew; make it longer.")
        self._lookup = lookup
        self._nonces = nonces
        self._clock = clock
        self._skew = clock_skew
        # A time stamp is good up to and including the last second, whatever fraction of it has passed.
        self._remember = nonce_window + 1

    def verify(self, method: str, target: str, authorization: str | None, body_hash: BodyHash) -> VerifiedDevice:
        """Verify one request.

        Args:
            method: HTTP method.
            target: the raw request target: path as on the wire, ``?`` and query.
            authorization: value of the Authorization header, None or empty where there is none.
            body_hash: returns the lower-case hex SHA-256 of the raw body; called only for a known device.

        Raises:
            RequestError: one of its subclasses, with status, public code and private reason.
        """
        if not authorization:
            raise MissingHeader()
        header = parse_authorization(authorization)
        scheme = SCHEMES.get(header.v)
        if scheme is None:
            raise UnsupportedVersion()
        public_key, device = self._trusted(header)
        ambiguity = target_ambiguity(target)
        if ambiguity is not None:
            raise Unauthorized(reason=f"ambiguous_target ({ambiguity})", device_id=device.device_id)
        try:
            message = scheme.signed_message(
                method=method, target=target, timestamp=header.ts, nonce=header.nonce, body_hash=body_hash()
            )
            genuine = verify_signature(_loaded_key(public_key), message, b64decode_any(header.sig))
        except InvalidInput:
            genuine = False
        if not genuine:
            raise Unauthorized(reason="invalid_signature", device_id=device.device_id)
        now = int(self._clock())
        skew = int(header.ts) - now
        if abs(skew) > self._skew:
            raise TimestampOutOfRange(device_id=device.device_id)
        if not self._nonces.record(device.device_id, header.nonce, self._remember):
            raise Unauthorized(reason="replay_detected", device_id=device.device_id)
        return VerifiedDevice(
            device_id=device.device_id,
            friendly_name=device.friendly_name,
            verified_at=now,
            role=device.role,
            permissions=device.permissions,
            public_key=public_key,
            user_id=device.user_id,
            pk=device.pk,
            clock_skew=skew,
        )

    def _trusted(self, header: Authorization) -> tuple[bytes, TrustedKey]:
        try:
            public_key = decode_public_key(header.id)
        except InvalidInput:
            raise Unauthorized(reason="unknown_device (not a public key)") from None
        device = self._lookup(public_key)
        if device is None:
            raise Unauthorized(reason="unknown_device", device_id=device_id(public_key))
        if device.revoked:
            raise Unauthorized(reason="device_revoked", device_id=device.device_id)
        if device.role != CONTROLLER:
            raise Unauthorized(reason="role_rejected", device_id=device.device_id)
        return public_key, device


@functools.cache
def default_verifier() -> Verifier:
    """The verifier that the settings describe, over the database.

    Raises:
        ImproperlyConfigured: the settings are wrong.
    """
    settings = amesh_settings()
    return Verifier(
        lookup=database_lookup,
        nonces=store_for(settings.NONCE_CACHE),
        clock_skew=settings.CLOCK_SKEW_SECONDS,
        nonce_window=settings.NONCE_WINDOW_SECONDS,
    )


def reset() -> None:
    """Forget the verifier, and the nonces that it holds in local memory."""
    default_verifier.cache_clear()
