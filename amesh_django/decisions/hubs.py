"""What hubs have said about devices, and what people decide in spite of it (docs/fleet.md §5)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from django.utils.translation import gettext as _

from amesh_django.models import Device, Hub, HubEntry
from amesh_django.states import ROTATED
from amesh_django.trust.chain import Actor
from amesh_django.trust.change import Change
from amesh_django.trust.hubs import is_allowed, key_name
from amesh_django.trust.sealing import actor, now
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AllowListError, Run
from authmesh.protocol.keys import decode_public_key

#: Columns of the word of a hub that does not suspend the device.
NOT_SUSPENDED: dict[str, Any] = {"suspended": False, "suspended_until": None}


class KeyRevokedByHub(AllowListError):
    """A hub has revoked the key, and only a person trusts it in spite of that."""

    code = "key_denied"
    default_message = "A hub has revoked the key. Nothing was changed."
    default_hint = (
        "Find out why. If it is a mistake, undo the revocation at the hub, or decide here: run ",
        Run("trust"),
        " with the line that export-key prints on the device. If the hub is no hub of this server any more, all that it has said is "
        "removed by ",
        Run("hubs", "forget HUB"),
        ".",
    )


def author(device_id: str) -> Actor:
    """Return the author of what a hub changes: ``hub am_…``. A plain device ID stands for a rotation."""
    return Actor(f"hub {device_id}", "hub")


def is_author(by: str) -> bool:
    """Return True if a hub is the author of a change, as the row of a device has it."""
    return by.startswith("hub am_")


#: What the word of a hub has instead of ``revoke`` if only this key ended there, because another one has replaced it.
REPLACED = "replace"


def revokes(entry: HubEntry) -> bool:
    """Return True if a hub has revoked the device, and no person trusted it in spite of that."""
    return entry.event == "revoke" and not is_allowed(entry)


def keeps_out(entry: HubEntry) -> bool:
    """Return True if a hub has revoked or replaced this key, and no person trusted it in spite of that."""
    return revokes(entry) or (entry.event == REPLACED and not is_allowed(entry))


def suspends(entry: HubEntry, moment: dt.datetime) -> bool:
    """Return True if a hub has suspended the device until after *moment*, and no person lifted that."""
    return entry.suspended and (entry.suspended_until is None or entry.suspended_until > moment)


def follows_hubs(pending: Change) -> bool:
    """Return True if any hub has said anything here, so that its words must be read."""
    # The words count also if the row of the hub was removed outside Django.
    return any(model.objects.using(pending.hubs.using).exists() for model in (Hub, HubEntry))


def words_about(pending: Change, rows: Sequence[Device]) -> list[HubEntry]:
    """Return what hubs have said about devices, also by keys that they have replaced."""
    if not rows or not follows_hubs(pending):
        return []
    return pending.hubs.about(key_name(decode_public_key(row.public_key)) for row in with_replaced(pending, rows))


def revoked_keys(pending: Change, public_keys: Iterable[bytes]) -> set[bytes]:
    """Return those of some keys that a hub has revoked. Nothing but a person brings them back."""
    if not follows_hubs(pending):
        return set()
    names = {key_name(key): key for key in public_keys}
    return {names[entry.key] for entry in pending.hubs.about(names) if keeps_out(entry)}


def revoking_hub(pending: Change, public_key: bytes) -> str:
    """Return the device ID of a hub that has revoked a key; an empty text if none has."""
    if not follows_hubs(pending):
        return ""
    return next((entry.hub for entry in pending.hubs.about([key_name(public_key)]) if keeps_out(entry)), "")


def refuse_revoked(pending: Change, public_key: bytes) -> None:
    """Check a key that is about to be trusted with no person who decides it.

    Raises:
        KeyRevokedByHub: a hub has revoked it.
    """
    hub = revoking_hub(pending, public_key)
    if hub:
        raise KeyRevokedByHub(
            _("The hub %(hub)s has revoked the key. Nothing was changed.") % {"hub": clean_line(hub)},
            hint=KeyRevokedByHub.default_hint,
        )


def note_decision(pending: Change, rows: Sequence[Device], *, trusted: bool = False, lifted: bool = False) -> None:
    """Note that a person has decided about devices in spite of what hubs have said: what they have said so far does not count.

    Args:
        pending: the open change.
        rows: the devices that the person has trusted or reinstated, or whose suspension was lifted.
        trusted: True if the person has trusted them, so that no hub may change what they may do. The suspensions of those that are not
            suspended have ended, too.
        lifted: True if the suspensions by hubs have ended in any case.
    """
    if not rows or not follows_hubs(pending):
        return
    moment, changed = now(), []
    is_lifted = {
        key_name(decode_public_key(row.public_key)): lifted or (trusted and row.suspended_at is None)
        for row in with_replaced(pending, rows)
    }
    for entry in pending.hubs.about(set(is_lifted)):
        entry.allowed_epoch, entry.allowed_serial, entry.allowed_at = entry.epoch, entry.serial, moment
        entry.added = entry.added and not trusted
        for name, value in NOT_SUSPENDED.items() if is_lifted[entry.key] else ():
            setattr(entry, name, value)
        changed.append(entry)
    pending.hubs.change(changed)


def follow_rotation(pending: Change, before: str, after: str) -> None:
    """Give what a hub has said, with what people have decided in spite of it, to the key that replaces its key.

    Args:
        pending: the open change.
        before: device ID of the old key.
        after: device ID of the new key, which no hub has had: see :func:`is_known_hub`.
    """
    if is_known_hub(pending, before):
        pending.hubs.move(before, after)


def is_known_hub(pending: Change, device_id: str) -> bool:
    """Return True if a device has ever said anything here as a hub."""
    return follows_hubs(pending) and pending.hubs.knows(device_id)


def authors_of(pending: Change, device_id: str) -> set[str]:
    """Return the names under which a hub has changed devices: that of its key, and those of the keys which that has replaced."""
    rows = with_replaced(pending, pending.select(device_id=device_id))
    return {actor(author(name)) for name in (device_id, *(row.device_id for row in rows))}


def forget_added(pending: Change, row: Device) -> None:
    """Note that a device is purged: if it comes back in another way, no hub may change what it may do."""
    if follows_hubs(pending):
        entries = [entry for entry in pending.hubs.about([key_name(decode_public_key(row.public_key))]) if entry.added]
        for entry in entries:
            entry.added = False
        pending.hubs.change(entries)


def with_replaced(pending: Change, rows: Sequence[Device]) -> list[Device]:
    """Return rows, and those of the keys that they have replaced: a hub may know the device by one of these."""
    found = {row.device_id: row for row in rows}
    names = [*found]
    while names:
        more = [*pending.select(revoked_by__in=names, revoke_reason=ROTATED), *pending.select(replaced_by__in=names)]
        # A collation may ignore case.
        more = [row for row in more if row.device_id not in found and {row.revoked_by, row.replaced_by} & {*names}]
        names = [row.device_id for row in more]
        found |= {row.device_id: row for row in more}
    return list(found.values())


def described(entry: HubEntry, moment: str) -> str:
    """Return what a hub has said about a key, in one sentence for people.

    Args:
        entry: the word.
        moment: its time, in words.
    """
    text = _("The hub %(hub)s revoked it %(moment)s") % {"hub": clean_line(entry.hub), "moment": moment}
    if entry.event not in ("revoke", REPLACED):
        text = _("The hub %(hub)s suspended it %(moment)s") % {"hub": clean_line(entry.hub), "moment": moment}
    return f"{text}: {clean(entry.reason)}." if entry.reason else f"{text}."
