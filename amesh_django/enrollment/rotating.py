"""Rotation: a controller replaces its key here, and both keys are valid for a while (docs/fleet.md §2).

The row of the old key gets a time of revocation that is still to come, with the reason ``rotated``. The time is sealed, so nothing has
to happen when it has come: from then on, the old key is revoked.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from typing import Any

from amesh_django.conf import amesh_settings
from amesh_django.decisions import hubs, on_entry, suspend_beforehand
from amesh_django.models import AuditEvent, Device
from amesh_django.server import server_device
from amesh_django.states import ACTIVE, REVOKED, ROTATED
from amesh_django.trust import current_list
from amesh_django.trust.chain import Actor
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import now as moment
from authmesh.protocol.enrollment_errors import KeyDenied, ServerBusy
from authmesh.protocol.errors import (
    AllowListBusy,
    AllowListIntegrityFailure,
    DirectoryError,
    KeyStoreError,
    TimestampOutOfRange,
    Unauthorized,
)
from authmesh.protocol.keys import device_id, encode_public_key
from authmesh.protocol.rotation import (
    MAX_SKEW_SECONDS,
    AlreadyRotated,
    KeyAlreadyKnown,
    RotationRequest,
    TooManyRotations,
    build_rotated,
    parse_rotation,
    verify_rotation,
)

logger = logging.getLogger("amesh_django.enrollment")

#: How often a device may replace its key in an hour. Each time adds a row to the list.
MAX_PER_HOUR = 10


def rotate(value: Any, *, public_key: bytes, now: float) -> dict[str, Any]:
    """Replace the key of a device, and return the body of the answer.

    Args:
        value: the JSON value of the body.
        public_key: the key that signed the request, 33 bytes.
        now: Unix seconds.

    Raises:
        RequestError: the rotation is refused, or this server cannot decide now (docs/fleet.md §2).
    """
    request, old = parse_rotation(value), device_id(public_key)
    try:
        server = server_device()
        verify_rotation(request, old_public_key=public_key, audience=server.identity.device_id)
        if abs(request.issued_at - int(now)) > MAX_SKEW_SECONDS:
            raise TimestampOutOfRange(device_id=old)
        if request.new_public_key == public_key:  # accepted already; the answer was lost
            return build_rotated(request, old_device_id=old, overlap=0, sign=server.sign)
        overlap = current_list().change(
            Actor(f"rotation of {old}", "device"), lambda pending: _replace(pending, request, public_key)
        )
        return build_rotated(request, old_device_id=old, overlap=overlap, sign=server.sign)
    except AllowListBusy as error:
        raise ServerBusy(device_id=old) from error
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason=error.code) from error


def _replace(pending: Change, request: RotationRequest, public_key: bytes) -> int:
    """Store the new key, and set the end of the old one. Return the seconds for which the old one is still valid."""
    old, new = device_id(public_key), device_id(request.new_public_key)
    keys = [encode_public_key(key) for key in (public_key, request.new_public_key)]
    rows = {row.device_id: row for row in pending.select(public_key__in=keys)}
    before, known, moment_now = rows.get(old), rows.get(new), moment()
    state = REVOKED if before is None else before.state
    if before is None or state != ACTIVE:  # between the verification and the lock
        raise Unauthorized(reason=f"device_{state}", device_id=old)
    if before.revoked_at is not None:  # in its overlap
        if before.revoked_by != new or known is None:
            raise AlreadyRotated(device_id=old)
        return int((before.revoked_at - moment_now).total_seconds())
    if known is not None:
        raise KeyDenied(device_id=old) if known.is_revoked else KeyAlreadyKnown(device_id=old)
    hub = hubs.revoking_hub(pending, request.new_public_key)
    if hub:
        raise KeyDenied(device_id=old, detail=f"revoked by the hub {hub}")
    if hubs.is_known_hub(pending, new):  # purged since; its words are not those of this device
        raise KeyAlreadyKnown(device_id=old)
    _check_rate(pending, before, moment_now)
    overlap = amesh_settings().ROTATE_OVERLAP_SECONDS
    pending.update(
        before,
        AuditEvent.Kind.ROTATE,
        revoked_at=moment_now + dt.timedelta(seconds=overlap),
        revoked_by=new,
        revoke_reason=ROTATED,
    )
    row = Device(
        device_id=new,
        public_key=encode_public_key(request.new_public_key),
        friendly_name=before.friendly_name,
        role=before.role,
        permissions_json=before.permissions_json,
        added_by=before.added_by,
        user_id=before.user_id,
        groups_json=before.groups_json,
        note=before.note,
        **_entering(before),
    )
    suspend_beforehand(pending, [row])
    pending.insert([row], AuditEvent.Kind.ROTATE)
    hubs.follow_rotation(pending, old, new)
    logger.info("%s was replaced by %s. The old key is valid for %d s more.", old, new, overlap)
    return overlap


def _check_rate(pending: Change, row: Device, moment_now: dt.datetime) -> None:
    """Raise TooManyRotations if a device has replaced its key too often. The rows of its earlier keys say so, in every process.

    Only a key that is younger than an hour can be one too many, so nearly every rotation reads no further row.
    """
    since, count = moment_now - dt.timedelta(hours=1), 0
    while row.added_at > since:
        found = pending.select(revoked_by=row.device_id, revoke_reason=ROTATED)
        older = next((one for one in found if one.revoked_by == row.device_id), None)  # a collation may ignore case
        if older is None:
            return
        count += 1
        if count == MAX_PER_HOUR:
            error = TooManyRotations(device_id=row.device_id)
            error.retry_after = math.ceil((row.added_at - since).total_seconds())
            raise error
        row = older


def _entering(before: Device) -> dict[str, Any]:
    """Return the columns that follow from the time at which the new key enters: its life is that of the old key, and at most
    ``MAX_KEY_AGE_DAYS``. The device was approved already.
    """
    columns = {"added_at": moment(), **on_entry(before.role, approved=True)}
    if before.expires_at is not None:
        end = columns["added_at"] + (before.expires_at - before.added_at)
        columns["expires_at"] = min(columns.get("expires_at", end), end)
    return columns
