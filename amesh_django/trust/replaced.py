"""The keys that a device had before: a server of this hub may know the device by one of them only (docs/fleet.md §4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from django.db.models import Q

from amesh_django.models import AuditEvent, Device
from amesh_django.states import ROTATED
from authmesh.protocol.keys import decode_public_key

from .chain import ChainedRows, data_of, device_of, event_mac
from .damage import UNREADABLE
from .hubs import key_name
from .keys import SealKeys
from .sealing import is_revoked, row_values

#: Kinds of events about a device that concern the keys that it had before, too.
KINDS: frozenset[str] = frozenset(
    {AuditEvent.Kind.REVOKE, AuditEvent.Kind.SUSPEND, AuditEvent.Kind.LIFT, AuditEvent.Kind.REINSTATE}
)

#: Device IDs that one query looks for in texts. It compares each text with each of them.
_MAX_NAMES = 20


def keys_before(names: Iterable[str], read: Callable[[Sequence[str]], Iterable[Device]]) -> dict[str, list[str]]:
    """Return the hashes of the keys that devices have replaced, directly or not, and that are not accepted any more.

    Args:
        names: device IDs, some of them more than once.
        read: returns the rows of the keys that were replaced by one of some devices.
    """
    before: dict[str, list[Device]] = {}
    names = level = [*dict.fromkeys(names)]
    seen = {*level}
    while level:
        rows = [row for row in read(level) if row.device_id not in seen]
        for row in rows:
            before.setdefault(row.revoked_by, []).append(row)
        level = [*dict.fromkeys(row.device_id for row in rows)]
        seen |= {*level}
    found: dict[str, list[str]] = {}
    for name in names if before else ():
        rows = [*before.get(name, ())]
        for row in rows:  # grows
            rows += before.get(row.device_id, ())
        # A key that is still accepted has an event of its own.
        found[name] = [key_name(decode_public_key(row.public_key)) for row in rows if is_revoked(row_values(row))]
    return found


def purged_keys(sealed: ChainedRows, names: Sequence[str]) -> list[Device]:
    """Return the rows of the keys that were replaced by one of some devices, and purged, as they were then. They may be trusted again.

    Args:
        sealed: the allow list.
        names: device IDs.
    """
    wanted, known = Q(data__contains=ROTATED), frozenset(names)
    if len(names) <= _MAX_NAMES:
        wanted = Q(*(Q(data__contains=name) for name in names), _connector=Q.OR)
    found: dict[str, Device] = {}
    for event in sealed.events(wanted, kind=AuditEvent.Kind.PURGE):
        if event is None or not sealed.is_genuine_event(event):
            continue
        try:
            row = device_of(data_of(event)["row"])
            decode_public_key(row.public_key)
        except (*UNREADABLE, KeyError):
            continue
        if row.revoke_reason == ROTATED and row.revoked_by in known:
            found[row.device_id] = row
    return [*found.values()]


def name_in(keys: SealKeys, event: AuditEvent, replaced: Sequence[str]) -> None:
    """Add the hashes of keys that a device had before to an event that is not saved yet.

    Args:
        keys: keys of the seal of the list.
        event: the event.
        replaced: as :func:`keys_before` returns them.
    """
    if replaced:
        event.data = json.dumps({**data_of(event), "replaced": [*replaced]}, ensure_ascii=True)
        event.mac = event_mac(keys, event)
