"""The feed: the message that brings a server up to date, made from the audit log, or from the verified rows if the log is not enough."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

from django.utils import timezone

from amesh_django.conf import amesh_settings
from amesh_django.kinds import EventKind
from amesh_django.models import AuditEvent, Device, Server
from amesh_django.server import server_device
from amesh_django.spelling import manage_py
from amesh_django.states import REVOKED, ROTATED, SUSPENDED
from amesh_django.trust import SealedList, current_list
from amesh_django.trust.groups import Groups
from amesh_django.trust.replaced import keys_before, purged_keys
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.encoding import b64url_decode
from authmesh.protocol.errors import Run
from authmesh.protocol.fleet.events import EventName, FeedEvent
from authmesh.protocol.fleet.feed import MAX_EVENTS, MAX_IN_MESSAGE, FeedMessage

from . import signed_list
from .events import Audience, event, key_in, of_unknown, replaced_in, row_of
from .rarely import rarely
from .sealed_rows import sealed_groups, sealed_rows
from .servers import Head, Look, look
from .tail import Gap, changes_after

logger = logging.getLogger("amesh_django.fleet")

#: Events that also concern the keys that a device had before.
_OF_ALL_KEYS = ("suspend", "lift", "reinstate")
#: Revisions that are read for one message.
MAX_REVISIONS = 10 * MAX_EVENTS


class _TooMany(Gap):
    """A revision revokes so many keys that the signed list says it shorter."""


def message_for(
    server: Server, *, epoch: str, after: int, now: float, with_list: bool = False, seen: Look | None = None
) -> FeedMessage:
    """Return the message with what a server lacks, or with as much of it as fits.

    Args:
        server: its row, which is genuine.
        epoch: epoch of the allow list that the server knows.
        after: serial up to which the server has all events of that epoch.
        now: Unix seconds.
        with_list: True if the server has asked for the signed list.
        seen: the allow list, if it was just looked at.

    Raises:
        AllowListIntegrityFailure: the seal is missing or forged, or the list is an older one that was restored.
        AllowListUnavailable: the list cannot be read from the database.
        IdentityMissing, DirectoryError, KeyStoreError: this server cannot sign, or its keys cannot be used.
    """
    sealed, seen = current_list(), seen or look()
    newest = seen.head
    is_known = epoch == newest.epoch
    start = after if is_known else 0
    needs_list = with_list or not is_known or newest.revision - start > MAX_EVENTS
    # Only what is trusted needs the scopes of groups.
    is_enrolling = server.scope_of_events == Server.ScopeOfEvents.ENROLL
    audience = Audience(server, sealed_groups(sealed) if is_enrolling else Groups())
    try:
        if not is_known:
            raise Gap
        events, until = from_log(sealed, seen, audience, start)
    except Gap:
        needs_list = True
        events, until = from_rows(sealed, audience, start, newest, is_known=is_known)
    return FeedMessage(
        issuer=server_device().identity.device_id,
        audience=server.device_id,
        url=amesh_settings().URL or "",
        epoch=newest.epoch,
        after=start,
        head=newest.revision,
        issued_at=int(now),
        events=events,
        until=until,
        revocations=signed_list.build(now) if needs_list else "",
    )


# --- from the audit log ---


def from_log(sealed: SealedList, seen: Look, audience: Audience, after: int) -> tuple[list[FeedEvent], int]:
    """Return the events of whole revisions, and the newest revision that they cover.

    Args:
        sealed: the allow list.
        seen: as it was just looked at.
        audience: the server.
        after: revision after which they begin.

    Raises:
        Gap: the log does not have each revision between.
    """
    found: list[FeedEvent] = []
    covered, until = after, seen.head.revision
    try:
        walk = itertools.groupby(changes_after(sealed, seen.seal, after), key=lambda change: change.revision or 0)
        for revision, changes in walk:
            if revision != covered + 1:
                raise Gap
            new = list(_events_of(sealed, audience, list(changes)))
            # Only what was revoked is in the list.
            if len(new) > MAX_IN_MESSAGE and all(one.event == "revoke" and not one.left for one in new):
                raise _TooMany
            if found and len(found) + len(new) > MAX_EVENTS:
                return found, covered
            found += new
            covered = revision
            if covered == until or covered - after >= MAX_REVISIONS:
                return found, covered
        if covered < until:
            raise Gap
    except Gap as gap:
        if not isinstance(gap, _TooMany):
            _report_gap(sealed, covered)
        raise
    return found, until


def _report_gap(sealed: SealedList, covered: int) -> None:
    """Log that a revision is missing, unless the log only begins after it: in a list of version 0.1, or an archived log."""
    first = sealed.changes().first()
    if first is not None and (first.revision or 0) > covered:
        return
    if rarely("gap"):
        logger.critical(
            "The audit log lacks changes after revision %d of the allow list: events were removed or changed outside Django. The servers get the signed "
            "list of all revocations instead. To see what is wrong, run: %s",
            covered,
            manage_py(Run("audit", "--verify")),
        )


def _events_of(sealed: SealedList, audience: Audience, changes: Sequence[AuditEvent]) -> Iterator[FeedEvent]:
    """Yield the events of one revision, one for each key: the last one. A copy of an event is no other event."""
    found: dict[bytes, FeedEvent] = {}
    for change in changes:
        for one in _events_of_change(sealed, audience, change):
            found.pop(one.key, None)
            found[one.key] = one
    yield from found.values()


def _events_of_change(sealed: SealedList, audience: Audience, change: AuditEvent) -> Iterator[FeedEvent]:
    if change.kind == EventKind.GROUP and not change.device_id:
        yield from _events_of_group(sealed, audience, change)
        return
    row, key = row_of(change), key_in(change)
    if key is not None:
        yield of_unknown(change, key)
        return
    one = audience.event_of(change, row, lambda: _row_before(sealed, change)) if row is not None else None
    if row is not None and one is not None:
        yield from audience.with_replaced(one, row, replaced_in(change))


def _events_of_group(sealed: SealedList, audience: Audience, change: AuditEvent) -> Iterator[FeedEvent]:
    """Yield what follows from other scopes of a group: each member has other scopes than before."""
    if not audience.is_enrolling:
        return
    rows, is_sure = sealed_rows(sealed)
    for row in rows:
        if change.subject in row.groups and audience.has(row):
            tell = audience.trust if is_sure else audience.gone
            yield tell(row, change.revision or 0, change.at)


def _row_before(sealed: SealedList, change: AuditEvent) -> Device | None:
    """Return the row of a device before a change, as the audit log has it."""
    events = sealed.events(device_id=change.device_id, revision__lt=change.revision)
    genuine = [one for one in events if one is not None and sealed.is_genuine_event(one)]
    return row_of(genuine[-1]) if genuine and genuine[-1].kind != EventKind.PURGE else None


# --- from the rows ---


def from_rows(
    sealed: SealedList, audience: Audience, after: int, newest: Head, *, is_known: bool
) -> tuple[list[FeedEvent], int]:
    """Return what the signed list does not say, for the devices whose rows were changed after a revision: who is suspended and, for a
    server that is told so, whom to trust, and who is not in its groups.

    Args:
        sealed: the allow list.
        audience: the server.
        after: revision after which they begin.
        newest: head of the list.
        is_known: True if the server knows this epoch, so that it can be told what was lifted or reinstated after the revision. What an
            older epoch says about that may have been overtaken.

    If neither the rows nor the audit log are what was sealed, it says nothing that lets a device in.

    Raises:
        AllowListIntegrityFailure: the seal is missing or forged.
    """
    all_rows, is_sure = sealed_rows(sealed)
    new_rows = [row for row in all_rows if row.revision > after]
    # What is said about a replaced key counts for its successors, too, until their own event follows.
    rows = sorted(new_rows, key=lambda row: (row.revision, row.revoke_reason != ROTATED))
    undone = _undone(sealed, after) if is_known and is_sure else {}
    names = [row.device_id for row in rows if row.suspended_at is not None or row.device_id in undone]
    before = _keys_before(sealed, all_rows, names)
    found: list[FeedEvent] = []
    covered = after
    for revision, changed in itertools.groupby(rows, key=lambda row: row.revision):
        new: list[FeedEvent] = []
        for row in changed:
            one = _event_of_row(sealed, audience, row, undone.get(row.device_id))
            if one is not None and one.event == "trust" and not is_sure:
                continue
            keys = before.get(row.device_id, ()) if one is not None and one.event in _OF_ALL_KEYS else ()
            new += audience.with_replaced(one, row, keys) if one is not None else ()
        if revision > newest.revision or (found and len(found) + len(new) > MAX_EVENTS):
            return found, covered
        found += new
        covered = revision
    return found, newest.revision


def _event_of_row(sealed: SealedList, audience: Audience, row: Device, undone: AuditEvent | None) -> FeedEvent | None:
    state = row.state
    is_replaced = row.revoke_reason == ROTATED and row.revoked_by.startswith("am_")
    if state == SUSPENDED and row.suspended_at is not None:
        # A key that was replaced does not come back: nobody would say later that its time is over.
        until = None if is_replaced else row.suspended_until
        left = audience.has_left(row)
        return event("suspend", row, row.revision, row.suspended_at, row.suspend_reason, until=until, left=left)
    if is_replaced and audience.is_enrolling and row.revoked_at is not None:
        # Also if its time is over: it may not have been when the signed list was made.
        return audience.replaced(row, row.revision, row.revoked_at) or _gone(sealed, audience, row)
    if state == REVOKED:
        return None
    if audience.has(row) and (undone is None or undone.kind != EventKind.LIFT):
        return audience.trust(row, row.revision, undone.at if undone is not None else row.added_at)
    if undone is not None:
        name: EventName = "lift" if undone.kind == EventKind.LIFT else "reinstate"
        return audience.undone(name, row, row.revision, undone.at, "")
    return _gone(sealed, audience, row)


def _gone(sealed: SealedList, audience: Audience, row: Device) -> FeedEvent | None:
    """Return the event about a device that the server may have been told to trust before, and must not trust any more."""
    if not audience.has_left(row):
        return None
    changes = [
        one for one in sealed.events(device_id=row.device_id) if one is not None and sealed.is_genuine_event(one)
    ]
    if row.role != CONTROLLER:  # nearly every target never was a controller
        rows = [row_of(change) for change in changes]
        if all(one is None or one.role != CONTROLLER for one in rows):
            return None
    at = next((one.at for one in reversed(changes) if one.revision == row.revision), None)
    return audience.gone(row, row.revision, at or timezone.now())


def _keys_before(sealed: SealedList, rows: Sequence[Device], names: Sequence[str]) -> dict[str, list[bytes]]:
    """Return the hashes of the keys that devices had before and that are not accepted any more, also of those that were purged."""
    there, replaced = {row.device_id for row in rows}, dict[str, list[Device]]()
    for row in rows:
        if row.revoke_reason == ROTATED:
            replaced.setdefault(row.revoked_by, []).append(row)

    def read(some: Sequence[str]) -> list[Device]:
        purged = [row for row in purged_keys(sealed, some) if row.device_id not in there]
        return [row for name in some for row in replaced.get(name, ())] + purged

    return {name: [b64url_decode(key) for key in keys] for name, keys in keys_before(names, read).items()}


def _undone(sealed: SealedList, after: int) -> dict[str, AuditEvent]:
    """Return the newest event by which each device was lifted or reinstated."""
    kinds = (EventKind.LIFT, EventKind.REINSTATE)
    events = sealed.events(revision__gt=after, kind__in=kinds)
    return {change.device_id: change for change in events if change is not None and sealed.is_genuine_event(change)}
