"""The state of a device: one word that follows from sealed columns and the clock (docs/fleet.md §3)."""

from __future__ import annotations

import datetime as dt
from typing import Final, Literal, NamedTuple

State = Literal["active", "pending", "expired", "suspended", "denied", "revoked"]

ACTIVE: Final = "active"
PENDING: Final = "pending"
EXPIRED: Final = "expired"
SUSPENDED: Final = "suspended"
DENIED: Final = "denied"
REVOKED: Final = "revoked"

#: Reason of a revocation by rotation. Until the time of the revocation, the key is still valid.
ROTATED: Final = "rotated"

#: All states. Of those that the columns of a device have, the last one is its state.
STATES: tuple[State, ...] = (ACTIVE, PENDING, EXPIRED, SUSPENDED, DENIED, REVOKED)


class Standing(NamedTuple):
    """The sealed columns that the state follows from. Times are Unix seconds.

    Attributes:
        revoked_from: as :func:`revoked_from` returns it.
        is_denied: True if a person denied the device.
        is_suspended: True if the device was suspended and not lifted.
        suspended_until: end of the suspension; None if it has none.
        expires_from: time from which the device is expired.
        is_pending: True if the device was added to wait for approval, and no person approved it.
    """

    revoked_from: float | None = None
    is_denied: bool = False
    is_suspended: bool = False
    suspended_until: float | None = None
    expires_from: float | None = None
    is_pending: bool = False


#: The standing of nearly every device: none of the columns is set.
UNRESTRICTED = Standing()


def standing(
    *,
    revoked_at: dt.datetime | None,
    revoked_by: str,
    revoke_reason: str,
    denied_at: dt.datetime | None,
    suspended_at: dt.datetime | None,
    suspended_until: dt.datetime | None,
    expires_at: dt.datetime | None,
    pending_since: dt.datetime | None,
) -> Standing:
    """Return the standing of a device with these columns."""
    found = Standing(
        revoked_from(revoked_at, revoked_by, revoke_reason),
        denied_at is not None,
        suspended_at is not None,
        _seconds(suspended_until),
        _seconds(expires_at),
        pending_since is not None,
    )
    return UNRESTRICTED if found == UNRESTRICTED else found


def revoked_from(revoked_at: dt.datetime | None, by: str, reason: str) -> float | None:
    """Return the Unix seconds from which a device is revoked; 0 if no rotation set the time, None if it is not revoked.

    Only a rotation sets a time to come. Any other revocation counts at once, also on a host whose clock is behind.

    Args:
        revoked_at, by, reason: the columns of the revocation. A rotation is made by the new device.
    """
    if revoked_at is None:
        return None
    return revoked_at.timestamp() if reason == ROTATED and by.startswith("am_") else 0.0


def state_of(found: Standing, now: float) -> State:
    """Return the state of a device. Only ``active`` is accepted.

    A decision of a person counts before one that the clock makes, and a final one before one that can be undone: otherwise a
    suspended device whose key has expired would look as if a new expiry were enough. What nobody has decided yet comes last.

    Args:
        found: its standing.
        now: Unix seconds.
    """
    if found is UNRESTRICTED:
        return ACTIVE
    if found.revoked_from is not None and found.revoked_from <= now:
        return REVOKED
    if found.is_denied:
        return DENIED
    if found.is_suspended and (found.suspended_until is None or now < found.suspended_until):
        return SUSPENDED
    if found.expires_from is not None and found.expires_from <= now:
        return EXPIRED
    return PENDING if found.is_pending else ACTIVE


def _seconds(moment: dt.datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None
