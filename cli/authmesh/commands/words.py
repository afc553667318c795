"""The wording that several commands share: how a device, a role, a time is shown."""

from __future__ import annotations

from typing import Any

from authmesh.device import Identity
from authmesh.protocol.allow_list import CONTROLLER, TARGET, DeviceEntry
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.encoding import parse_time
from authmesh.protocol.errors import Hint, InvalidInput, Run
from authmesh.protocol.keys import encode_public_key

from .terminal.lines import Styled, facts

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
    """Return the permissions of a device with commas; empty if it has none."""
    return ", ".join(sorted(clean(name) for name, value in entry.permissions.items() if value))


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


def changes(entry: DeviceEntry, known: DeviceEntry) -> list[Styled]:
    """Return lines that show how the entry of a known device will change."""
    pairs = [
        ("Name", clean(known.friendly_name), entry.friendly_name),
        ("Role", clean(known.role), entry.role),
        ("Permissions", permissions(known) or "none", permissions(entry) or "none"),
    ]
    changed = [(label, f"{old} -> {new}") for label, old, new in pairs if old != new]
    return facts(*(changed or [("Unchanged", "name, role and permissions")]))


def joined(hint: Hint, *more: str | Run) -> Hint:
    """Return a hint with further parts after it."""
    return (*(hint if isinstance(hint, tuple) else (hint,)), *more)


def first_line(error: BaseException) -> str:
    """Return the first line of the text of a library's error as a part of a sentence; its class name if it has no text."""
    lines = str(error).splitlines() or [""]
    return clean_line(lines[0])[:200].rstrip(". ") or type(error).__name__
