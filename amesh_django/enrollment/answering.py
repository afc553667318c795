"""The answer to ``POST enroll``: checked from what is cheap to what is not, and signed."""

from __future__ import annotations

from typing import Any

from amesh_django.server import server_device
from authmesh.protocol.enrollment import (
    MAX_SKEW_SECONDS,
    EnrollmentRequest,
    build_answer,
    parse_request,
    verify_key,
    verify_proof,
)
from authmesh.protocol.enrollment_errors import InvalidEnrollmentToken, ServerBusy
from authmesh.protocol.errors import (
    AllowListBusy,
    AllowListIntegrityFailure,
    DirectoryError,
    KeyStoreError,
    TimestampOutOfRange,
)
from authmesh.protocol.keys import device_id

from . import limits, tokens
from .admission import admit


def enroll(value: Any, *, address: str, now: float) -> dict[str, Any]:
    """Enroll a machine, and return the body of the answer.

    Args:
        value: the JSON value of the body.
        address: address of the client.
        now: Unix seconds.

    Raises:
        RequestError: the machine is refused, or this server cannot decide now (docs/fleet.md §1).
    """
    request = parse_request(value)
    try:
        device = server_device()
        issuer = device.identity.device_id
        try:
            _verify_proof(request, issuer)
        except InvalidEnrollmentToken:
            limits.count_wrong(address, now=now)
            raise
        limits.count_use(request.jti, now=now)
        verify_key(request, issuer=issuer)
        if abs(request.issued_at - int(now)) > MAX_SKEW_SECONDS:
            raise TimestampOutOfRange(device_id=device_id(request.public_key))
        state = admit(request, now=now)
        return build_answer(
            request,
            state=state,
            server_key=device.identity.public_key,
            server_name=device.identity.friendly_name,
            sign=device.sign,
        )
    except AllowListBusy as error:
        raise ServerBusy(device_id=device_id(request.public_key)) from error
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason=error.code) from error


def _verify_proof(request: EnrollmentRequest, issuer: str) -> None:
    """Check the proof with each secret of the seal that is in use: a token outlives the replacement of the secret.

    Raises:
        InvalidEnrollmentToken: the proof is wrong.
    """
    *older, last = tokens.secrets_of(request.jti)
    for secret in older:
        try:
            verify_proof(request, secret=secret, issuer=issuer)
        except InvalidEnrollmentToken:
            continue
        return
    verify_proof(request, secret=last, issuer=issuer)
