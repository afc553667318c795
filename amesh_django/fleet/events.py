"""Which events of the feed a change of the allow list is, for one server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent, Device, Server
from amesh_django.states import ACTIVE, EXPIRED, ROTATED, SUSPENDED
from amesh_django.trust.chain import data_of, device_of
from amesh_django.trust.damage import UNREADABLE
from amesh_django.trust.groups import Groups
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.encoding import b64url_decode
from authmesh.protocol.fleet.events import LEFT_GROUP, EventName, FeedEvent, Trusted, device_id_of, key_hash
from authmesh.protocol.keys import decode_public_key
from authmesh.protocol.scopes import SCOPES

from .servers import ALL

#: Kinds of events after which a server is told to trust the device, if it is one of its own.
_TRUSTING: frozenset[str] = frozenset(
    {
        EventKind.TRUST,
        EventKind.APPROVE,
        EventKind.GRANT,
        EventKind.SCOPE,
        EventKind.GROUP,
        EventKind.CHANGE,
        EventKind.EXPIRE,
        EventKind.MAP,
    }
)
#: Those of them that begin no suspension.
_KEEPING: frozenset[str] = _TRUSTING - {EventKind.TRUST, EventKind.APPROVE}
#: Those of them that may take a device out of a group, and never add one to the list.
_LEAVING: frozenset[str] = frozenset({EventKind.GRANT, EventKind.GROUP})
_PLAIN: dict[str, EventName] = {EventKind.LIFT: "lift", EventKind.REINSTATE: "reinstate"}
#: Permissions that no server lets a hub grant.
_NEVER = ("enroll", "revoke", "shell")


class Audience:
    """What one server is told.

    Args:
        server: its row.
        groups: the groups of the allow list, verified.
    """

    def __init__(self, server: Server, groups: Groups) -> None:
        self.is_enrolling = server.scope_of_events == Server.ScopeOfEvents.ENROLL
        self._device_id = server.device_id
        self._names = frozenset(server.groups)
        self._groups = groups

    def has(self, row: Device) -> bool:
        """Return True if the server is to trust a device. An expiry does not matter, because the server is told of it."""
        return self.is_told_of(row) and row.state in (ACTIVE, EXPIRED)

    def is_told_of(self, row: Device) -> bool:
        """Return True if the server trusts a device as soon as it is not suspended."""
        is_other = row.device_id != self._device_id
        return self.is_enrolling and is_other and row.revoked_at is None and not self.has_left(row)

    def has_left(self, row: Device) -> bool:
        """Return True if the server must not accept a device that this hub has added there, even if it is not revoked."""
        is_in = row.role == CONTROLLER and not (row.denied_at or row.pending_since)
        return self.is_enrolling and row.device_id != self._device_id and not (is_in and self._is_named(row))

    def _is_named(self, row: Device) -> bool:
        return ALL in self._names or not self._names.isdisjoint(row.groups)

    def event_of(self, change: AuditEvent, row: Device, before: Callable[[], Device | None]) -> FeedEvent | None:
        """Return the event that a change of a device is for the server, or None.

        Args:
            change: a genuine event of the audit log.
            row: the row of the device after it.
            before: returns the row of the device before the change, as the audit log has it.
        """
        if row.device_id == self._device_id:
            return None
        serial, at, reason = change.revision or 0, change.at, change.text
        if change.kind == EventKind.REVOKE:
            return event("revoke", row, serial, at, reason)
        if change.kind == EventKind.SUSPEND:
            return self.suspended(row, serial, at, reason)
        if change.kind in _PLAIN:
            return self.undone(_PLAIN[change.kind], row, serial, at, reason)
        if not self.is_enrolling:
            return None
        if change.kind == EventKind.ROTATE and row.revoke_reason == ROTATED:
            return self.replaced(row, serial, at)
        if change.kind not in _TRUSTING and change.kind != EventKind.ROTATE:
            return None
        if self.is_told_of(row):
            return self.as_it_is(row, serial, at, still=change.kind in _KEEPING)
        known = before() if change.kind in _TRUSTING else None
        was_told = self.is_told_of(known) if known is not None else change.kind in _LEAVING
        return self.gone(row, serial, at) if was_told and row.revoked_at is None and self.has_left(row) else None

    def as_it_is(self, row: Device, serial: int, at: dt.datetime, *, still: bool) -> FeedEvent:
        """Return the event about a device that the server is told of, and whose rights may have changed.

        Args:
            row: the row of the device.
            serial, at: number and time of the change.
            still: True if a suspended device was suspended before.
        """
        if row.state == SUSPENDED:
            return self.suspended(row, serial, at, row.suspend_reason, still=still)
        return self.trust(row, serial, at)

    def suspended(
        self, row: Device, serial: int, at: dt.datetime, reason: str, *, has_end: bool = True, still: bool = False
    ) -> FeedEvent:
        """Return the event about a suspended device. It has the rights of now: nobody says more when the suspension ends by itself."""
        return event(
            "suspend",
            row,
            serial,
            at,
            reason,
            until=row.suspended_until if has_end else None,
            left=self.has_left(row),
            trusted=self._trusted(row) if self.is_told_of(row) else None,
            still=still,
        )

    def with_replaced(self, one: FeedEvent, row: Device, keys: Sequence[bytes]) -> Iterator[FeedEvent]:
        """Yield an event about a device, and the same about the keys that it had before: the server may know it by one of them only.

        Args:
            one: the event.
            row: the row of the device.
            keys: hashes of the keys that it had before and that are not accepted any more.
        """
        yield one
        # A server that was told which key replaces which has the newest one, and the others do not come back.
        if one.event == "reinstate" and self.is_enrolling and row.role == CONTROLLER and self._is_named(row):
            return
        for key in keys:
            yield replace(one, device_id=device_id_of(key), key=key, left=False, trusted=None)

    def undone(self, name: EventName, row: Device, serial: int, at: dt.datetime, reason: str) -> FeedEvent:
        """Return the event that ends a suspension or a revocation.

        What the device may do has perhaps changed meanwhile, which the server was not told, or the server was added meanwhile.
        """
        trusted = self._trusted(row) if self.has(row) else None
        return event(name, row, serial, at, reason, left=self.has_left(row), trusted=trusted)

    def gone(self, row: Device, serial: int, at: dt.datetime) -> FeedEvent:
        """Return the event about a device that is not in the groups of the server. It has the hash of the key, and nothing else."""
        return event("revoke", row, serial, at, LEFT_GROUP, left=True)

    def replaced(self, row: Device, serial: int, at: dt.datetime) -> FeedEvent | None:
        """Return the event about a key that was replaced, which is revoked from a time on."""
        if row.device_id == self._device_id or row.role != CONTROLLER or not self._is_named(row):
            return None
        return event("revoke", row, serial, at, ROTATED, effective_at=row.revoked_at, successor=row.revoked_by)

    def trust(self, row: Device, serial: int, at: dt.datetime) -> FeedEvent:
        """Return the event that lets the server trust a device as this hub does: with its own scopes and those of its groups."""
        return event("trust", row, serial, at, "", trusted=self._trusted(row))

    def _trusted(self, row: Device) -> Trusted:
        permissions = {name: value for name, value in row.permissions.items() if name not in (*_NEVER, SCOPES)}
        return Trusted(
            public_key=decode_public_key(row.public_key),
            name=row.friendly_name,
            permissions=permissions,
            scopes=tuple(sorted(self._groups.scopes_of(row.permissions_json, row.groups_json))),
            expires_at=_utc(row.expires_at),
        )


def row_of(change: AuditEvent) -> Device | None:
    """Return the row of a device after a change, not saved; None if the event is about no device, or the list never had it."""
    texts = data_of(change).get("row")
    if not isinstance(texts, dict):
        return None
    try:
        row = device_of(texts)
        decode_public_key(row.public_key)
    except UNREADABLE:
        return None
    return row


def key_in(change: AuditEvent) -> bytes | None:
    """Return the public key that a genuine event names because the list never had the device; None if it names none."""
    found = data_of(change).get("publicKey")
    return decode_public_key(found) if isinstance(found, str) and change.kind == EventKind.REVOKE else None


def of_unknown(change: AuditEvent, key: bytes) -> FeedEvent:
    """Return the event about a revoked device that the list never had: people revoked it in a list that was changed outside Django."""
    at = change.at.astimezone(dt.UTC)
    return FeedEvent(change.revision or 0, "revoke", change.device_id, key_hash(key), at, change.text)


def replaced_in(change: AuditEvent) -> list[bytes]:
    """Return the hashes of the keys that a device had before, as a genuine event about it names them."""
    names = data_of(change).get("replaced")
    return [b64url_decode(name) for name in names] if isinstance(names, list) else []


def event(
    name: EventName,
    row: Device,
    serial: int,
    at: dt.datetime,
    reason: str,
    *,
    until: dt.datetime | None = None,
    effective_at: dt.datetime | None = None,
    successor: str = "",
    left: bool = False,
    trusted: Trusted | None = None,
    still: bool = False,
) -> FeedEvent:
    """Return an event about a device.

    Args:
        name: what happened.
        row: its row.
        serial: revision of the list.
        at: time of the change.
        reason: in words.
        until: end of a suspension.
        effective_at: time from which a key that was replaced is revoked.
        successor: device ID of the key that replaced it.
        left: True if the device is not in the groups of the server.
        trusted: what the event ``trust`` says.
        still: True if the device was suspended before.
    """
    return FeedEvent(
        serial=serial,
        event=name,
        device_id=row.device_id,
        key=key_hash(decode_public_key(row.public_key)),
        at=at.astimezone(dt.UTC),
        reason=reason,
        until=_utc(until),
        effective_at=_utc(effective_at),
        successor=successor,
        left=left,
        trusted=trusted,
        still=still,
    )


def _utc(moment: dt.datetime | None) -> dt.datetime | None:
    return moment.astimezone(dt.UTC) if moment is not None else None
