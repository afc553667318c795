"""Words that several commands use: how a device, a role, a time is shown."""

from __future__ import annotations

from typing import Any

from authmesh.device import Identity
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import InvalidInput
from authmesh.protocol.keys import encode_public_key

from .terminal.console import Line, facts

#: What the two roles mean, seen from this device.
MEANING = {
    CONTROLLER: "it may authenticate to this device",
    TARGET: "this device may authenticate to it",
}


def when(text: str) -> str:
    """A time of a file or a row as people read it; what is no time is shown as it is."""
    try:
        return parse_time(text).strftime("%Y-%m-%d %H:%M UTC")
    except InvalidInput:
        return clean(text)


def named(entry: DeviceEntry) -> str:
    """A device in a sentence: id and name."""
    return f"{clean(entry.device_id)} ({clean(entry.friendly_name)})"


def permissions(entry: DeviceEntry) -> str:
    """What a device may do besides; empty if nothing."""
    return ", ".join(sorted(clean(name) for name, value in entry.permissions.items() if value))


def has_shell(entry: DeviceEntry) -> bool:
    """True if a shell is granted."""
    return entry.permissions.get("shell") is True


def identity_json(identity: Identity) -> dict[str, Any]:
    """This device for ``--json``. Members that we do not know stay out: an old file keeps its passphrase among them."""
    return {
        "deviceId": identity.device_id,
        "publicKey": encode_public_key(identity.public_key),
        "friendlyName": identity.friendly_name,
        "createdAt": identity.created_at,
        "storageBackend": identity.storage_backend,
        "maxControllers": identity.controller_limit,
    }


def changes(entry: DeviceEntry, known: DeviceEntry) -> list[Line]:
    """What becomes of a device that is known already."""
    pairs = [
        ("Name", clean(known.friendly_name), entry.friendly_name),
        ("Role", clean(known.role), entry.role),
        ("Permissions", permissions(known) or "none", permissions(entry) or "none"),
    ]
    changed = [(label, f"{old} -> {new}") for label, old, new in pairs if old != new]
    return facts(*(changed or [("Unchanged", "name, role and permissions")]))
