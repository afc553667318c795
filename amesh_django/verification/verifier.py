"""The one verifier: method, raw target, header and raw body become a VerifiedDevice, or an error that says why not."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from amesh_django.states import ACTIVE
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.canonical import target_ambiguity
from authmesh.protocol.encoding import b64decode_any
from authmesh.protocol.errors import (
    InvalidInput,
    MissingHeader,
    RequestError,
    TimestampOutOfRange,
    Unauthorized,
    UnsupportedVersion,
)
from authmesh.protocol.header import Authorization, parse_authorization
from authmesh.protocol.keys import decode_public_key, device_id, load_public_key, verify_signature
from authmesh.protocol.schemes.registry import SCHEMES

from .types import BodyHash, Lookup, NonceStore, TrustedKey, VerifiedDevice

#: The roles that may authenticate: all views but one accept no others.
ROLES: Collection[str] = frozenset({CONTROLLER})

#: An accepted clock skew above this, in seconds, is logged as ``clock_drift_warning``.
DRIFT_SECONDS = 20


@functools.lru_cache(maxsize=8192)
def _loaded_key(public_key: bytes) -> EllipticCurvePublicKey:
    return load_public_key(public_key)


class Verifier:
    """Verifies requests (protocol.md §3). No other code in this package does a step of that.

    Args:
        lookup: returns the device of a public key.
        nonces: the nonce store.
        clock: returns Unix seconds.
        clock_skew: accepted difference between the clocks of device and server, in seconds.
        nonce_window: seconds for which a nonce is remembered; at least twice *clock_skew*.

    Raises:
        InvalidInput: *nonce_window* is too short, so that a request could be replayed.
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
            raise InvalidInput(
                "The nonce window is shorter than twice the clock skew, so that a request could be replayed.",
                hint=f"Set it to {2 * clock_skew} seconds or more.",
            )
        self._lookup = lookup
        self._nonces = nonces
        self._clock = clock
        self._skew = clock_skew
        # A timestamp is valid until the end of its last second.
        self._remember = nonce_window + 1

    def verify(
        self,
        method: str,
        target: str,
        authorization: str | None,
        body_hash: BodyHash,
        *,
        late_body_hash: BodyHash | None = None,
        before_lookup: Callable[[], None] | None = None,
        roles: Collection[str] = ROLES,
    ) -> VerifiedDevice:
        """Verify one request.

        Args:
            method: HTTP method.
            target: the raw request target: the path as on the wire, ``?`` and query.
            authorization: value of the Authorization header; None or empty if there is none.
            body_hash: returns the SHA-256 of the raw body in lower-case hex. Called only for a device in the allow list.
            late_body_hash: called instead of *body_hash* if the timestamp is out of range; raises an error if it would have to read
                much. Defaults to *body_hash*.
            before_lookup: raises an error if the request must be rejected, no matter who signed it. Called before the key is looked up,
                so that the response does not tell who is in the allow list.
            roles: roles that are accepted. A hub answers the questions of its servers, which are targets, and nothing else does so
                (SECURITY.md).

        Raises:
            MissingHeader: there is no Authorization header.
            MalformedHeader: the header is not a well-formed AuthMesh header.
            UnsupportedVersion: no scheme has the version of the header.
            Unauthorized: the request is not from a device that may authenticate. The reason for the log is ``unknown_device``,
                ``device_`` and its state (``device_pending``, ``device_denied``, ``device_suspended``, ``device_expired``,
                ``device_revoked``), ``role_rejected``, ``ambiguous_target``, ``invalid_signature`` or ``replay_detected``.
            TimestampOutOfRange: the signature is valid, but the clocks of device and server differ too much.
            RequestError: *before_lookup*, *body_hash*, the lookup or the nonce store raised it.
        """
        if not authorization:
            raise MissingHeader()
        header = parse_authorization(authorization)
        scheme = SCHEMES.get(header.v)
        if scheme is None:
            raise UnsupportedVersion()
        if before_lookup is not None:
            before_lookup()
        public_key, device = self._known(header)
        try:
            state = device.state(self._clock())
            if state != ACTIVE:
                raise Unauthorized(reason=f"device_{state}")
            if device.role not in roles:
                raise Unauthorized(reason="role_rejected")
            ambiguity = target_ambiguity(target)
            if ambiguity is not None:
                raise Unauthorized(reason="ambiguous_target", detail=ambiguity)
            # Before the body is read: anyone who recorded a header once could make the server store bodies forever.
            if late_body_hash is not None and abs(int(header.ts) - int(self._clock())) > self._skew:
                body_hash = late_body_hash
            try:
                message = scheme.signed_message(
                    method=method, target=target, timestamp=header.ts, nonce=header.nonce, body_hash=body_hash()
                )
                genuine = verify_signature(_loaded_key(public_key), message, b64decode_any(header.sig))
            except InvalidInput:
                genuine = False
            if not genuine:
                raise Unauthorized(reason="invalid_signature")
            # Once more: a body that arrives slowly must not outlive the memory of its nonce.
            now = int(self._clock())
            skew = int(header.ts) - now
            if abs(skew) > self._skew:
                raise TimestampOutOfRange()
            if not self._nonces.record(device.device_id, header.nonce, self._remember):
                raise Unauthorized(reason="replay_detected")
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
                scopes=device.scopes,
                expires_at=device.expires_at,
                rotation_requested=device.rotation_requested,
            )
        except RequestError as error:
            error.device_id, error.device_name = device.device_id, device.friendly_name
            raise

    def _known(self, header: Authorization) -> tuple[bytes, TrustedKey]:
        """Return the public key of the header, and its device in the allow list."""
        try:
            public_key = decode_public_key(header.id)
        except InvalidInput:
            raise Unauthorized(reason="unknown_device", detail="not a public key") from None
        device = self._lookup(public_key)
        if device is None:
            raise Unauthorized(reason="unknown_device", device_id=device_id(public_key))
        return public_key, device
