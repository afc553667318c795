"""The answer to ``POST enroll``: checked from what is cheap to what is not, and signed."""

from __future__ import annotations

from typing import Any

from amesh_django.server import server_device
from amesh_django.trust.keys import SealKeys, all_seal_keys
from authmesh.protocol.enrollment import (
    MAX_SKEW_SECONDS,
    EnrollmentRequest,
    build_answer,
    parse_request,
    token_secret,
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

from . import limits
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
            keys = _proved(request, issuer)
        except InvalidEnrollmentToken:
            limits.count_wrong(address, now=now)
            raise
        limits.count_use(request.jti, now=now)
        verify_key(request, issuer=issuer)
        if abs(request.issued_at - int(now)) > MAX_SKEW_SECONDS:
            raise TimestampOutOfRange(device_id=device_id(request.public_key))
        state = admit(request, now=now, keys=keys, address=address)
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


def _proved(request: EnrollmentRequest, issuer: str) -> list[SealKeys]:
    """Return the keys of the seal under which the proof is right. There are several keys while the secret is being replaced.

    Raises:
        InvalidEnrollmentToken: there are none.
    """
    proved, wrong = [], InvalidEnrollmentToken()
    for keys in all_seal_keys():
        try:
            verify_proof(request, secret=token_secret(keys.enrollment, request.jti), issuer=issuer)
        except InvalidEnrollmentToken as error:
            wrong = error
        else:
            proved.append(keys)
    if not proved:
        raise wrong
    return proved
