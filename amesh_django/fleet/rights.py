"""What a hub lets a device do that it has added, beside what people of this server have decided about that (docs/fleet.md §6).

The word of the hub keeps what the hub gave last. Whatever the row has otherwise, people have decided since: about these names, and about
an earlier expiry, the hub has no say any more, also after it has revoked the device and trusted it again.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from amesh_django.conf import amesh_settings
from amesh_django.models import Device, HubEntry
from amesh_django.trust.hubs import stored_time
from amesh_django.trust.sealing import storable
from authmesh.protocol.display import clean
from authmesh.protocol.fleet.events import Trusted
from authmesh.protocol.scopes import SCOPES, covers, scopes_of
from authmesh.protocol.seal import canonical_json

_PERMISSIONS = "permissions"


class Rights(NamedTuple):
    """The rights of a device.

    Attributes:
        columns: columns of its row.
        word: columns of the word of the hub.
    """

    columns: dict[str, Any]
    word: dict[str, Any]


def rights(found: Trusted, row: Device | None, entry: HubEntry | None, *, added_at: dt.datetime) -> Rights:
    """Return what a device may do.

    Args:
        found: what the device may do at the hub, which may grant all of it.
        row: its row; None for a new device.
        entry: what the hub said about the key before; None for a new device.
        added_at: time from which the key ages.
    """
    permissions, word = _permissions(found, row, entry)
    expiry, limit = _expiry(found, row, entry, added_at)
    columns = {
        "friendly_name": storable(clean(found.name)),
        "permissions_json": storable(canonical_json(permissions).decode()),
        "expires_at": _earliest(expiry, limit),
    }
    return Rights(columns, {**word, "expires_at": expiry, "expiry_limit": limit})


def _permissions(found: Trusted, row: Device | None, entry: HubEntry | None) -> tuple[dict[str, Any], dict[str, str]]:
    before = row.permissions if row is not None else {}
    given = json.loads(entry.given_json) if entry is not None else {}
    decided = json.loads(entry.decided_json) if entry is not None else {}
    names = {*decided.get(_PERMISSIONS, ()), *_differing(_without_scopes(before), _without_scopes(given))}
    scopes = {*decided.get(SCOPES, ()), *(scopes_of(before) ^ scopes_of(given))}
    taken = scopes - scopes_of(before)
    new = {name: value for name, value in found.permissions.items() if name not in names}
    new_scopes = {one for one in found.scopes if one not in scopes and not any(_overlap(one, other) for other in taken)}
    kept = {name: value for name, value in before.items() if name in names}
    word = {
        "given_json": _text(_with_scopes(new, new_scopes)),
        "decided_json": _text({_PERMISSIONS: sorted(names), SCOPES: sorted(scopes)}),
    }
    return _with_scopes({**kept, **new}, new_scopes | (scopes_of(before) & scopes)), word


def _expiry(
    found: Trusted, row: Device | None, entry: HubEntry | None, added_at: dt.datetime
) -> tuple[dt.datetime | None, dt.datetime | None]:
    """Return the expiry that the hub gives, and the one beyond which people let it go."""
    days = amesh_settings().MAX_KEY_AGE_DAYS
    latest = added_at + dt.timedelta(days=days) if days is not None else None
    until = stored_time(found.expires_at) if found.expires_at is not None else None
    limit = None
    if row is not None and entry is not None:
        is_unchanged = row.expires_at == _earliest(entry.expires_at, entry.expiry_limit)
        limit = entry.expiry_limit if is_unchanged else row.expires_at
    return _earliest(until, latest), limit


def _earliest(*moments: dt.datetime | None) -> dt.datetime | None:
    return min((one for one in moments if one is not None), default=None)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """Return the names that two objects do not have with the same value. In JSON, 1 is not true."""
    texts = [{name: json.dumps(value, sort_keys=True) for name, value in one.items()} for one in (first, second)]
    return {name for name, _text in texts[0].items() ^ texts[1].items()}


def _overlap(first: str, second: str) -> bool:
    """Return True if one of two scopes that a device may have covers the other."""
    return covers(frozenset([first]), _sample(second)) or covers(frozenset([second]), _sample(first))


def _sample(scope: str) -> str:
    return f"{scope[:-1]}any" if scope.endswith(":*") else scope


def _without_scopes(permissions: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in permissions.items() if name != SCOPES}


def _with_scopes(permissions: Mapping[str, Any], scopes: Iterable[str]) -> dict[str, Any]:
    names = sorted(scopes)
    return {**permissions, **({SCOPES: names} if names else {})}


def _text(value: dict[str, Any]) -> str:
    return storable(canonical_json(value).decode())
