"""Rotation: a device replaces its key at a server, with both keys valid for a while (docs/fleet.md).

The request is signed twice: as every request by the old key, and in its body by the new key, which so proves that it exists and for
which device and server it is meant. The answer is signed by the server, so that nothing in between can make a device give up its old
key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from .encoding import b64decode, b64encode
from .enrollment_errors import EnrollmentRefused, MalformedEnrollment, UnverifiedAnswer
from .errors import AmeshError, Hint, InvalidInput, Run
from .keys import decode_public_key, device_id, encode_public_key, load_public_key, verify_signature

#: Path of the address, relative to the URL of a server.
ROTATE_PATH: Final = "rotate"
VERSION: Final = 1
MAX_SKEW_SECONDS: Final = 60
_MAX_TIME = 1 << 53


class RotationRefused(EnrollmentRefused):
    """The server refuses to replace the key of a device."""

    code = "rotation_refused"
    status = 403
    default_message = "The server refused to replace the key of this device. Its old key is valid as before."


class WrongAudience(RotationRefused):
    """The request was meant for another server."""

    code = "wrong_audience"
    default_message = "The request was meant for another server. Nothing was changed."
    default_hint = "Check the address of the server."


class InvalidNewKey(RotationRefused):
    """The new key did not sign the request."""

    code = "invalid_new_key"
    default_message = "The new key did not sign the request. Nothing was changed."
    default_hint = ("Try again: ", Run("rotate"), ".")


class KeyAlreadyKnown(RotationRefused):
    """The server knows the new key already, as another device."""

    code = "key_known"
    status = 409
    default_message = "The server knows the new key already, as another device. Nothing was changed."
    default_hint = "Use a key that was never used before."


class AlreadyRotated(RotationRefused):
    """The key that signed was replaced by another key already."""

    code = "already_rotated"
    status = 409
    default_message = "This key was already replaced by another one. Nothing was changed."
    default_hint = (
        "If that was not you, a copy of the key is in other hands: revoke the device that replaced it, on the server."
    )


class TooManyRotations(RotationRefused):
    """The device has replaced its key too often."""

    code = "too_many_rotations"
    status = 429
    retry_after = 3600
    default_message = "This device has replaced its key too often in the last hour. Nothing was changed."
    default_hint = "Try again in an hour. If it was not you who replaced the key, a copy of it is in other hands: revoke the device on the server."


class RotationUnfinished(AmeshError):
    """Not every server has accepted the new key."""

    code = "rotation_unfinished"
    default_message = "Not every server has accepted the new key yet. Both keys are kept."
    default_hint: ClassVar[Hint] = ("When these servers can be reached again, run ", Run("rotate", "--finish"), ".")


@dataclass(frozen=True, slots=True)
class RotationRequest:
    """The body of ``POST rotate``. Nothing in it is verified before :func:`verify_rotation`.

    Attributes:
        audience: device ID of the server that it is meant for.
        new_public_key: the new public key, 33 bytes.
        issued_at: time of the request, Unix seconds.
        signature: signature of the new key, 64 bytes.
    """

    audience: str
    new_public_key: bytes
    issued_at: int
    signature: bytes = field(repr=False)


def rotation_message(*, old_device_id: str, new_public_key: bytes, audience: str, issued_at: int) -> bytes:
    """Return the bytes that the new key signs.

    Args:
        old_device_id: device ID of the old key.
        new_public_key: the new public key, 33 bytes.
        audience: device ID of the server.
        issued_at: time of the request, Unix seconds.
    """
    return f"amesh-rotate-v1\n{old_device_id}\n{encode_public_key(new_public_key)}\n{audience}\n{issued_at}".encode()


def build_rotation(
    *, old_device_id: str, new_public_key: bytes, audience: str, now: int, sign: Callable[[bytes], bytes]
) -> dict[str, Any]:
    """Return the body of ``POST rotate``.

    Args:
        old_device_id, new_public_key, audience: as for :func:`rotation_message`.
        now: Unix seconds.
        sign: returns a signature made with the new key, 64 bytes.
    """
    rotation = rotation_message(
        old_device_id=old_device_id, new_public_key=new_public_key, audience=audience, issued_at=now
    )
    return {
        "v": VERSION,
        "aud": audience,
        "newPublicKey": encode_public_key(new_public_key),
        "iat": now,
        "sig": b64encode(sign(rotation)),
    }


def parse_rotation(value: Any) -> RotationRequest:
    """Return the request in a JSON value.

    Raises:
        MalformedEnrollment: a member is missing, or has the wrong form.
    """
    try:
        if not isinstance(value, dict) or value.get("v") != VERSION or value["v"] is True:
            raise MalformedEnrollment()
        audience, key, issued_at, sig = (value.get(name) for name in ("aud", "newPublicKey", "iat", "sig"))
        if not isinstance(audience, str) or not isinstance(key, str) or not isinstance(sig, str):
            raise MalformedEnrollment()
        if type(issued_at) is not int or not 0 <= issued_at < _MAX_TIME:
            raise MalformedEnrollment()
        new_public_key = decode_public_key(key)
        load_public_key(new_public_key)
        return RotationRequest(audience, new_public_key, issued_at, b64decode(sig))
    except InvalidInput:
        raise MalformedEnrollment() from None


def verify_rotation(request: RotationRequest, *, old_public_key: bytes, audience: str) -> None:
    """Check that a rotation is meant for this server, and that the device has the new key.

    If the new key signed the header, too, the device asks whether the server has accepted it already.

    Args:
        request: the request, whose header was signed by the old key.
        old_public_key: the key that signed the header, 33 bytes.
        audience: device ID of this server.

    Raises:
        WrongAudience: the request is meant for another server.
        InvalidNewKey: the signature of the new key is not valid.
    """
    old = device_id(old_public_key)
    if request.audience != audience:
        raise WrongAudience(device_id=old)
    message = rotation_message(
        old_device_id=old,
        new_public_key=request.new_public_key,
        audience=audience,
        issued_at=request.issued_at,
    )
    if not verify_signature(request.new_public_key, message, request.signature):
        raise InvalidNewKey(device_id=old)


# --- the answer -----------------------------------------------------------------------------------------------------


def rotated_message(*, old_device_id: str, new_public_key: bytes, audience: str) -> bytes:
    """Return the bytes that the server signs after it has stored the new key."""
    return f"amesh-rotated-v1\n{old_device_id}\n{encode_public_key(new_public_key)}\n{audience}".encode()


def build_rotated(
    request: RotationRequest, *, old_device_id: str, overlap: int, sign: Callable[[bytes], bytes]
) -> dict[str, Any]:
    """Return the body of the answer.

    Args:
        request: the request, whose new key is stored.
        old_device_id: device ID of the old key.
        overlap: seconds for which the old key is still valid.
        sign: returns a signature made with the key of this server, 64 bytes.
    """
    rotated = rotated_message(
        old_device_id=old_device_id, new_public_key=request.new_public_key, audience=request.audience
    )
    return {"deviceId": device_id(request.new_public_key), "overlapSeconds": overlap, "sig": b64encode(sign(rotated))}


def verify_rotated(
    value: Any, *, old_device_id: str, new_public_key: bytes, server_key: bytes, audience: str
) -> int | None:
    """Check that the server has stored the new key.

    Args:
        value: the JSON value of the answer.
        old_device_id: device ID of the old key.
        new_public_key: the new key, 33 bytes.
        server_key: public key of the server in the allow list of this device, 33 bytes.
        audience: device ID of the server.

    Returns:
        the seconds for which the old key is still valid; None if the answer does not say. They are not signed.

    Raises:
        UnverifiedAnswer: the signature is not valid. Keep the old key.
    """
    try:
        sig = value.get("sig") if isinstance(value, dict) else None
        signature = b64decode(sig) if isinstance(sig, str) else b""
    except InvalidInput:
        signature = b""
    message = rotated_message(old_device_id=old_device_id, new_public_key=new_public_key, audience=audience)
    if not verify_signature(server_key, message, signature):
        raise UnverifiedAnswer()
    seconds = value.get("overlapSeconds")
    return seconds if type(seconds) is int and seconds >= 0 else None
