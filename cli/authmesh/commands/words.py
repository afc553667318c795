"""The wording that several commands share: how a device, a role, a time is shown."""

from __future__ import annotations

from typing import Any

from authmesh.device import Identity
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import Hint, InvalidInput, Run
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.scopes import SCOPES, scopes_of

from .home import ACTIVE, Listed
from .terminal.lines import Shown, facts

#: The two roles, seen from this device.
MEANING = {
    CONTROLLER: "it may authenticate to this device",
    TARGET: "this device may authenticate to it",
}


def when(text: str) -> str:
    """Return a time of a file or a database row as people read it; a text that is not a time is returned as it is."""
    try:
        return parse_time(text).strftime("%Y-%m-%d %H:%M UTC")
    except InvalidInput:
        return clean(text)


def counted(number: int, what: str) -> str:
    """Return a number with its noun: ``1 device``, ``2 devices``."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def named(device: DeviceEntry | Identity) -> str:
    """Return device ID and name of a device, for use in a sentence."""
    return f"{clean(device.device_id)} ({clean(device.friendly_name)})"


def permissions(entry: DeviceEntry) -> str:
    """Return the permissions of a device with commas, without its scopes; empty if it has none."""
    return ", ".join(sorted(clean(name) for name, value in entry.permissions.items() if value and name != SCOPES))


def own_scopes(entry: DeviceEntry) -> str:
    """Return the scopes of a device itself, not those of its groups, with commas; empty if it has none."""
    return ", ".join(sorted(scopes_of(entry.permissions)))


def has_shell(entry: DeviceEntry) -> bool:
    """Return True if a device may open a shell."""
    return entry.permissions.get("shell") is True


def identity_json(identity: Identity) -> dict[str, Any]:
    """Return this device for ``--json``. Unknown members are left out: an old file has its passphrase among them."""
    return {
        "deviceId": identity.device_id,
        "publicKey": encode_public_key(identity.public_key),
        "friendlyName": identity.friendly_name,
        "createdAt": identity.created_at,
        "storageBackend": identity.storage_backend,
        "maxControllers": identity.controller_limit,
    }


def refreshed(entry: DeviceEntry, known: Listed) -> list[Shown]:
    """Return lines that show how a device in the list, whatever its state, will change when it is trusted again."""
    before = known.entry
    pairs = [
        ("Name", clean(before.friendly_name), entry.friendly_name),
        ("Role", clean(before.role), entry.role),
        ("Permissions", permissions(before) or "none", permissions(entry) or "none"),
        ("Scopes", own_scopes(before) or "none", own_scopes(entry) or "none"),
    ]
    found = [(label, f"{old} -> {new}") for label, old, new in pairs if old != new]
    found = found or [("Unchanged", "name, role, permissions and scopes")]
    if known.groups:
        found.append(("Groups", f"{', '.join(map(clean, known.groups))}, as before"))
    if known.expires_at is not None and before.role == entry.role:
        found.append(("Expires", f"{when(known.expires_at)}, as before"))
    what = "already trusted" if known.state == ACTIVE else f"already in the allow list ({known.state})"
    return [f"It is {what}, added {when(before.added_at)}, and will be refreshed:", *facts(*found)]


def joined(hint: Hint, *more: str | Run) -> Hint:
    """Return a hint with further parts after it."""
    return (*(hint if isinstance(hint, tuple) else (hint,)), *more)


def first_line(error: BaseException) -> str:
    """Return the first line of the text of a library's error as a part of a sentence; its class name if it has no text."""
    lines = str(error).splitlines() or [""]
    return clean_line(lines[0])[:200].strip().rstrip(".") or type(error).__name__
