"""What one event of a hub means for one device here (docs/fleet.md §5)."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from amesh_django.decisions import REINSTATED, suspending
from amesh_django.decisions.hubs import NOT_SUSPENDED, REPLACED, author, authors_of, keeps_out, revokes, with_replaced
from amesh_django.decisions.revoking import in_overlap, keys_of_device, predecessors, successors
from amesh_django.decisions.suspending import Suspension, by_hubs, by_person
from amesh_django.kinds import EventKind
from amesh_django.models import Device, Hub, HubEntry
from amesh_django.states import ROTATED
from amesh_django.trust.change import Change
from amesh_django.trust.hubs import key_name, stored_time
from amesh_django.trust.owner import controller_limit
from amesh_django.trust.sealing import actor, is_revoked, now, row_values, storable
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.fleet.events import LEFT_GROUP, FeedEvent, device_id_of
from authmesh.protocol.fleet.feed import Refused
from authmesh.protocol.keys import decode_public_key

from . import trusting
from .plans import NOTHING, Plan, Update

#: Longest time for which a key that was replaced at the hub is still valid here, in seconds.
_MAX_OVERLAP_SECONDS = 3600


class Applying:
    """The events of one message, inside one change.

    Args:
        pending: the open change.
        hub: the row of the hub, locked.
        epoch: epoch of the hub's list.
        events: all events that will be applied, so that their rows are read at once.
        may_enroll: True if the hub may add devices.
        room: number of devices whose state it may change now.

    Attributes:
        changed: number of events that have changed a device.
        refused: events that were not applied.
    """

    def __init__(
        self, pending: Change, hub: Hub, epoch: str, events: Sequence[FeedEvent], *, may_enroll: bool, room: int
    ) -> None:
        self.pending = pending
        self.hub_id = hub.device_id
        self.by = actor(author(hub.device_id))
        self.may_enroll = may_enroll
        self.moment = now()
        self.changed = 0
        self.refused: list[Refused] = []
        self._epoch, self._room = epoch, room
        self._rows = pending.with_ids(device_id_of(event.key) for event in events)
        self._rows |= pending.with_ids({event.successor for event in events if event.successor} - {*self._rows})
        self._mine: dict[str, HubEntry] = {}
        self._others: dict[str, list[HubEntry]] = {}
        self._read = {b64url_encode(event.key) for event in events}
        self._read_words(self._read)
        #: Serial and device ID of what the message lets in, and of the keys that are replaced by it.
        self._coming = {(event.serial, device_id_of(event.key)) for event in events if _lets_in(event)}
        self._going = {
            (event.serial, event.successor): device_id_of(event.key)
            for event in events
            if event.effective_at is not None
        }
        self._noted: dict[str, HubEntry] = {}

    def _read_words(self, keys: Iterable[str]) -> None:
        for entry in self.pending.hubs.about(keys):
            if entry.hub == self.hub_id:
                self._mine[entry.key] = entry
            else:
                self._others.setdefault(entry.key, []).append(entry)

    @property
    def noted(self) -> list[HubEntry]:
        """What the hub said last, for the keys about which it said something new."""
        return list(self._noted.values())

    def apply(self, event: FeedEvent) -> bool:
        """Apply an event. Return False if it must wait, because the hub has changed as many devices as it may for now."""
        key, device_id = b64url_encode(event.key), device_id_of(event.key)
        entry = self._mine.get(key)
        if entry is not None and is_old(entry, event, self._epoch):
            return True
        plan = self._plan(event, device_id, entry)
        if plan.updates or plan.new is not None:
            if self.changed >= self._room:
                return False
            self.changed += 1
            for row, kind, columns in plan.updates:
                self.pending.update(row, kind, **columns)
                self._rows[row.device_id] = row  # an event may change other rows than its own
            if plan.new is not None:
                self.pending.insert([plan.new])
                self._rows[device_id] = plan.new
        if plan.why:
            self.refused.append(Refused(event.serial, device_id, plan.why))
        if plan.is_noted:
            self._note(event, key, device_id, entry, plan)
        return True

    def _note(self, event: FeedEvent, key: str, device_id: str, entry: HubEntry | None, plan: Plan) -> None:
        found = entry or HubEntry(key=key, device_id=device_id)
        # A signed list names no reasons.
        found.reason = storable(event.reason) or (found.reason if found.event == event.event else "")
        found.at = stored_time(event.at)
        found.epoch, found.serial = self._epoch, event.serial
        found.event = event.event if event.effective_at is None else REPLACED
        for name, value in plan.word.items():
            setattr(found, name, value)
        self._mine[key] = self._noted[key] = found

    def _is_mine(self, by: str) -> bool:
        """Return True if the author of a change is this hub, by this key or one that it has replaced."""
        return by == self.by or (by.startswith("hub am_") and by in self._authors)

    @functools.cached_property
    def _authors(self) -> set[str]:
        return authors_of(self.pending, self.hub_id)

    # --- one event ---

    def _plan(self, event: FeedEvent, device_id: str, entry: HubEntry | None) -> Plan:
        row = self._rows.get(device_id)
        if device_id == self.hub_id:
            return Plan(why="is_the_hub", is_noted=False)
        # A key that was replaced here, and that the hub has revoked, comes back with the new one or not at all.
        is_replaced = self.may_enroll and row is not None and bool(row.replaced_by) and self._is_mine(row.revoked_by)
        if (event.event == "trust" and not is_replaced) or (
            _lets_in(event) and self.may_enroll and (row is None or self._has_left(event, row))
        ):
            return self._trust(event, row, entry)
        if event.left and event.event == "revoke" and (row is None or not self._is_of_hub(row)):
            return Plan(is_noted=False)
        until = stored_time(event.until) if event.until is not None else None
        word = {"suspend": {"suspended": True, "suspended_until": until}, "lift": NOT_SUSPENDED}.get(event.event, {})
        if event.still and entry is not None and entry.epoch == self._epoch and not entry.suspended:
            word = {}  # a person here has lifted it in spite of the hub
        if row is None:
            return Plan(word=word)
        linked = [row, *successors(self.pending, row)]
        valid = keys_of_device(self.pending, row)
        if any(one.device_id == self.hub_id for one in (*linked, *valid)):
            return Plan(why="is_the_hub", is_noted=False)
        if event.left and self._is_of_hub(row):
            return replace(
                self._revoke(replace(event, effective_at=None, reason=LEFT_GROUP), row, valid, entry), word=word
            )
        if event.event == "revoke":
            return self._revoke(event, row, valid, entry)
        if event.event == "suspend":
            found = replace(self._suspend(event, valid, until) if word else NOTHING, word=word)
        elif event.event == "lift":
            found = replace(self._lift([*linked, *valid]), word=word)
        else:
            found = self._reinstate([*linked, *(one for key in linked for one in predecessors(self.pending, key))])
        if event.trusted is None or not self.may_enroll or entry is None or not entry.added:
            return found
        if event.event == "suspend" and not trusting.may_grant(event.trusted):
            return replace(found, why="may_not_grant")  # it is suspended in any case
        return trusting.with_rights(found, event.trusted, row, entry)

    def _has_left(self, event: FeedEvent, row: Device) -> bool:
        """Return True if a device left the groups of this server while it was suspended, and is in one of them again."""
        return event.event == "lift" and row.revoke_reason == LEFT_GROUP and self._is_mine(row.revoked_by)

    def _trust(self, event: FeedEvent, row: Device | None, entry: HubEntry | None) -> Plan:
        name = device_id_of(event.key)
        older = self._older(event.serial, name) if row is None else None
        words = self._words_of([one for one in (row, older) if one is not None])
        if row is None:
            words += self._others.get(b64url_encode(event.key), ())
        return trusting.plan(
            event,
            row,
            entry,
            older,
            self._mine.get(key_name(decode_public_key(older.public_key))) if older is not None else None,
            pending=self.pending,
            is_mine=self._is_mine,
            may_enroll=self.may_enroll,
            is_denied=any(map(revokes if row is not None or older is not None else keeps_out, words)),
            suspension=self._suspension(row or older or Device(), words),
            limit=controller_limit() + ((event.serial, name) in self._going),
        )

    def _older(self, serial: int, name: str) -> Device | None:
        """Return the row of the key that a new one replaces at the hub: what was decided here about the one holds for the other."""
        before = self._rows.get(self._going.get((serial, name), ""))
        if before is not None:
            return before
        replaced = self._replaced.get(name, ())
        return self._rows.get(replaced[0].device_id, replaced[0]) if replaced else None

    def _suspension(self, row: Device, words: Sequence[HubEntry]) -> dict[str, Any]:
        """Return the columns of a device that the hub lets in: people and other hubs may have suspended it."""
        others = by_hubs(row, words, self.moment)
        left = [one for name, one in others.items() if not self._is_mine(name)]
        return suspending.columns(row, by_person(row, self.moment), left, self.moment)

    def _revoke(self, event: FeedEvent, row: Device, valid: Sequence[Device], entry: HubEntry | None) -> Plan:
        if event.effective_at is not None:
            return self._replace(event, row, entry)
        columns = {"revoked_at": self.moment, "revoked_by": self.by, "revoke_reason": storable(event.reason)}
        return Plan([(one, EventKind.REVOKE, {**columns, **in_overlap(one)}) for one in valid])

    def _replace(self, event: FeedEvent, row: Device, entry: HubEntry | None) -> Plan:
        """Plan for a key that was replaced at the hub. If the hub has not added the device, the device replaces its key here itself."""
        if not self.may_enroll:
            return Plan(why="permission_missing", is_noted=False)
        if entry is None or not entry.added:
            return Plan(why="known_here", is_noted=False)
        if row.revoked_at is not None:
            return NOTHING
        newer = self._rows.get(event.successor)
        is_coming = newer is None and (event.serial, event.successor) in self._coming
        if event.effective_at is None or not (is_coming or (newer is not None and self._has_added(newer))):
            columns = {"revoked_at": self.moment, "revoked_by": self.by, "revoke_reason": storable(event.reason)}
            return Plan([(row, EventKind.REVOKE, columns)])
        end = min(stored_time(event.effective_at), self.moment + dt.timedelta(seconds=_MAX_OVERLAP_SECONDS))
        columns = {"revoked_at": end, "revoked_by": event.successor, "revoke_reason": ROTATED}
        return Plan([(row, EventKind.ROTATE, columns)])

    def _has_added(self, row: Device) -> bool:
        key = key_name(decode_public_key(row.public_key))
        self._read_more([row])
        return not is_revoked(row_values(row)) and key in self._mine and self._mine[key].added

    def _is_of_hub(self, row: Device) -> bool:
        """Return True if the hub has added the device, by this key or by one that it has replaced here."""
        rows = [row]
        for one in rows:  # grows
            self._read_more([one])
            word = self._mine.get(key_name(decode_public_key(one.public_key)))
            if word is not None and word.added:
                return True
            rows += [older for older in self._replaced.get(one.device_id, ()) if older not in rows]
        return False

    @functools.cached_property
    def _replaced(self) -> dict[str, list[Device]]:
        """The rows of the keys that were replaced here, by the device ID of the key that replaced them."""
        found: dict[str, list[Device]] = {}
        for row in self.pending.select(revoke_reason=ROTATED):
            found.setdefault(row.revoked_by, []).append(row)
        return found

    def _suspend(self, event: FeedEvent, valid: Sequence[Device], until: dt.datetime | None) -> Plan:
        new = Suspension(until, self.by, storable(event.reason))
        updates: list[Update] = []
        for row in valid:
            if row.role != CONTROLLER:
                continue  # not accepted anyway
            others = [*self._suspensions(row, valid), *([new] if new.is_on(self.moment) else ())]
            self._replace_suspension(row, others, updates)
        return Plan(updates)

    def _lift(self, rows: Sequence[Device]) -> Plan:
        updates: list[Update] = []
        is_on = False
        for row in {one.device_id: one for one in rows}.values():
            others = self._suspensions(row, rows)
            is_on = is_on or bool(others) or by_person(row, self.moment) is not None
            if row.suspended_at is not None:
                self._replace_suspension(row, others, updates)
        return Plan(updates, why="suspended_here" if is_on else "")

    def _suspensions(self, row: Device, rows: Sequence[Device]) -> list[Suspension]:
        """Return the suspensions of a device by other hubs.

        Args:
            row: one of its keys.
            rows: all of them.
        """
        found = by_hubs(row, self._words_of(rows), self.moment)
        return [one for name, one in found.items() if not self._is_mine(name)]

    def _replace_suspension(self, row: Device, others: Sequence[Suspension], updates: list[Update]) -> None:
        new = suspending.columns(row, by_person(row, self.moment), others, self.moment)
        if any(getattr(row, name) != value for name, value in new.items()):
            updates.append((row, suspending.kind_of(new), new))

    def _reinstate(self, linked: Sequence[Device]) -> Plan:
        mine = self._coming_back([*{row.device_id: row for row in linked}.values()])
        if not mine:
            return Plan(why="revoked_here" if is_revoked(row_values(linked[0])) else "")
        other = next((word for word in self._words_of(linked) if revokes(word)), None)
        if other is not None:
            still = {"revoked_by": actor(author(other.hub)), "revoke_reason": other.reason}
            return Plan([(row, EventKind.REVOKE, still) for row in mine])
        more = sum(row.role == CONTROLLER and row.denied_at is None and not row.replaced_by for row in mine)
        if self.pending.controllers + more > controller_limit():
            return Plan(why="max_controllers")
        return Plan([self._reinstated(row, linked) for row in mine])

    def _coming_back(self, linked: Sequence[Device]) -> list[Device]:
        """Return those keys of a device that this hub has revoked. One that was replaced needs the key that has replaced it."""
        mine = {row.device_id: row for row in linked if row.revoked_at is not None and self._is_mine(row.revoked_by)}
        valid = {row.device_id for row in linked if not is_revoked(row_values(row))}
        while gone := [
            name for name, row in mine.items() if row.replaced_by and row.replaced_by not in valid | {*mine}
        ]:
            for name in gone:
                del mine[name]
        return list(mine.values())

    def _reinstated(self, row: Device, linked: Sequence[Device]) -> Update:
        """Return what changes for a key that comes back: one that was replaced only until its end, if that has not come."""
        columns = {**REINSTATED, **self._still_suspended(row, linked)}
        if row.replaced_until is None:
            return row, EventKind.REINSTATE, columns
        columns |= {"revoked_at": row.replaced_until, "revoked_by": row.replaced_by, "revoke_reason": ROTATED}
        return row, EventKind.REINSTATE if row.replaced_until > self.moment else EventKind.ROTATE, columns

    def _still_suspended(self, row: Device, rows: Sequence[Device]) -> dict[str, Any]:
        """Return the columns of a device that comes back: another hub may have suspended it meanwhile."""
        others = by_hubs(row, self._words_of(rows), self.moment).values()
        return suspending.columns(row, by_person(row, self.moment), others, self.moment)

    def _words_of(self, rows: Sequence[Device]) -> list[HubEntry]:
        """Return what other hubs have said about the keys of a device, also about those that these have replaced."""
        rows = with_replaced(self.pending, rows)
        self._read_more(rows)
        keys = dict.fromkeys(key_name(decode_public_key(row.public_key)) for row in rows)
        return [word for key in keys for word in self._others.get(key, ())]

    def _read_more(self, rows: Sequence[Device]) -> None:
        new = {key_name(decode_public_key(row.public_key)) for row in rows} - self._read
        if new:
            self._read |= new
            self._read_words(new)


def _lets_in(event: FeedEvent) -> bool:
    """Return True if an event may add a device that is not here. One about a suspended device does not."""
    return event.trusted is not None and event.event != "suspend"


def is_old(entry: HubEntry, event: FeedEvent, epoch: str) -> bool:
    """Return True if an event changes nothing any more, because of the last word of its hub about the key.

    Args:
        entry: that word.
        event: the event.
        epoch: its epoch.
    """
    if entry.epoch == epoch:
        return event.serial <= entry.serial
    # Serials of two epochs cannot be compared. What a person decided since does not change for an older word.
    return entry.allowed_at is not None and stored_time(event.at) <= entry.allowed_at
