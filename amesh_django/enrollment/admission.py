"""Admission: a machine with a valid proof becomes a controller, and the use of its token is counted, in one sealed change."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection
from typing import Any

from amesh_django.audit.recording import record
from amesh_django.decisions import hubs, on_entry
from amesh_django.models import AuditEvent, Device, EnrollmentToken
from amesh_django.states import State
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from amesh_django.trust.groups import names_text
from amesh_django.trust.keys import SealKeys
from amesh_django.trust.owner import controller_limit
from amesh_django.trust.sealing import now as moment
from amesh_django.trust.sealing import storable
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.display import clean
from authmesh.protocol.enrollment import STATES, EnrollmentRequest
from authmesh.protocol.enrollment_errors import KeyDenied, MaxControllers
from authmesh.protocol.keys import decode_public_key, device_id, encode_public_key
from authmesh.protocol.seal import canonical_json

from . import tokens

logger = logging.getLogger("amesh_django.enrollment")


def known_state(*, device: str, role: str, state: State) -> str:
    """Return the state of a key that is in the list already, as the answer says it.

    Args:
        device: device ID.
        role: role in the list.
        state: state in the list.

    Raises:
        KeyDenied: a token does not bring this device back, and does not change its role. A person decides that.
    """
    if role != CONTROLLER:
        raise KeyDenied(detail="it is a target", device_id=device)
    if state not in STATES:
        raise KeyDenied(detail=state, device_id=device)
    return state


def admit(request: EnrollmentRequest, *, now: float, keys: Collection[SealKeys], address: str = "") -> str:
    """Trust a machine, unless it is trusted already, and return its state.

    Args:
        request: the request, whose proof and signature are verified.
        now: Unix seconds.
        keys: the keys of the seal under which the proof is right.
        address: of the machine, for the audit log.

    Raises:
        InvalidEnrollmentToken, EnrollmentTokenWithdrawn, EnrollmentTokenExpired, EnrollmentTokenUsedUp: by the token.
        KeyDenied: the key was revoked, here or by a hub, or is that of a target.
        MaxControllers: the list has as many controllers as it may have.
        AllowListError: the list does not match its seal, or is busy.
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    sealed, device = current_list(), device_id(request.public_key)
    known = sealed.snapshot().by_key.get(request.public_key)
    if known is not None:  # as before, without a lock
        return known_state(device=device, role=known.role, state=known.state(now))
    # Checked without a lock first: a token that cannot be used must not slow down changes of the list.
    token = tokens.check(tokens.find(request.jti), jti=request.jti, now=now, keys=keys)
    limit = controller_limit()

    def work(pending: Change) -> tuple[str, bool]:
        row = pending.find(public_key=encode_public_key(request.public_key))
        if row is not None and decode_public_key(row.public_key) == request.public_key:
            return known_state(device=device, role=row.role, state=row.state), False
        locked = tokens.check(tokens.find(request.jti), jti=request.jti, now=now, keys=keys)
        hub = hubs.revoking_hub(pending, request.public_key)
        if hub:
            raise KeyDenied(detail=f"revoked by the hub {hub}", device_id=device)
        if pending.controllers >= limit:
            raise MaxControllers(device_id=device)
        row = _row(pending, request, locked)
        pending.insert([row])
        tokens.count_use(locked)
        return row.state, True

    by = tokens.author(token)
    state, is_new = sealed.change(by, work)
    if is_new:
        about = {"device_id": device, "subject": token.name, "address": address}
        record(AuditEvent.Kind.TOKEN_USED, by=by, data={"jti": token.jti}, **about)
        logger.info("%s was enrolled with the token %s and is %s.", device, token.jti, state)
    return state


def _row(pending: Change, request: EnrollmentRequest, token: EnrollmentToken) -> Device:
    permissions: dict[str, Any] = {"scopes": token.scopes} if token.scopes else {}
    known = pending.groups() if token.groups else {}
    row = Device(
        device_id=device_id(request.public_key),
        public_key=encode_public_key(request.public_key),
        friendly_name=storable(clean(request.friendly_name)),
        role=CONTROLLER,
        permissions_json=canonical_json(permissions).decode(),
        added_at=moment(),
        added_by=Device.AddedBy.HANDSHAKE,
        user_id=token.user_id,
        groups_json=names_text(name for name in token.groups if name in known),  # others were removed meanwhile
        **on_entry(CONTROLLER, approved=token.approved),
    )
    if token.device_seconds is not None:
        end = row.added_at + dt.timedelta(seconds=token.device_seconds)
        row.expires_at = min(row.expires_at or end, end)
    return row
