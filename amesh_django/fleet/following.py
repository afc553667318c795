"""Which devices of the list are hubs, and by which of its keys a hub is known here.

A hub may replace its key as every device may. What it has said follows the new key, which is the one that this server asks. Both keys may
send until the overlap ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from amesh_django.decisions import any_row
from amesh_django.decisions.revoking import successors
from amesh_django.models import Device
from amesh_django.states import ACTIVE
from amesh_django.trust.change import Change
from amesh_django.trust.verified import KnownDevice, Snapshot
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.errors import DeviceNotFound
from authmesh.protocol.fleet.errors import PermissionMissing

#: Sealed permissions of a controller that is a hub.
REVOKE, ENROLL = "revoke", "enroll"


class HubDevice(Protocol):
    """A device of the sealed list: the one that signed a request, or that this server has asked."""

    @property
    def device_id(self) -> str: ...
    @property
    def permissions(self) -> Mapping[str, Any]: ...


def is_hub(device: HubDevice) -> bool:
    """Return True if the sealed list lets a device speak as a hub."""
    return any(device.permissions.get(name) is True for name in (REVOKE, ENROLL))


def speakers(known: Snapshot, now: float) -> list[tuple[bytes, KnownDevice]]:
    """Return the keys that speak for hubs: those of active controllers with the permission ``revoke`` or ``enroll``.

    Args:
        known: the list.
        now: Unix seconds.
    """
    return [
        (public_key, device)
        for public_key, device in [*known.by_key.items()]
        if device.permissions_json != "{}"
        and is_hub(device)
        and device.role == CONTROLLER
        and device.state(now) == ACTIVE
    ]


def follows(known: Snapshot, now: float) -> list[tuple[bytes, KnownDevice]]:
    """Return the hubs that a list follows, each with its newest key: a key that was replaced has nothing to say by itself.

    Args:
        known: the list.
        now: Unix seconds.
    """
    return [found for found in speakers(known, now) if found[1].standing.revoked_from is None]


def newest_id(known: Snapshot, device_id: str) -> str:
    """Return the device ID under which a hub is known here: that of the key which has replaced its key, if there is one.

    Args:
        known: the list.
        device_id: of a key that is still valid.
    """
    by_id = {device.device_id: device for device in [*known.by_key.values()] if device.permissions_json != "{}"}
    device = by_id.get(device_id)
    while device is not None and (newer := by_id.get(device.replaced_by)) is not None and is_hub(newer):
        device_id, device = newer.device_id, newer
    return device_id


def newest_row(pending: Change, device_id: str) -> Device:
    """Return the row of a hub that sends a message: the one with its newest key.

    Args:
        pending: the open change.
        device_id: of the key that has signed, and which may have lost its permission since.

    Raises:
        PermissionMissing: it has.
    """
    try:
        device = any_row(pending, device_id)
    except DeviceNotFound:
        raise PermissionMissing(device_id=device_id) from None
    if not _speaks(device):
        raise PermissionMissing(device_id=device_id)
    for newer in successors(pending, device):
        if not is_hub(newer):
            break
        if not _speaks(newer):
            raise PermissionMissing(device_id=device_id)
        device = newer
    return device


def _speaks(row: Device) -> bool:
    return row.state == ACTIVE and row.role == CONTROLLER and is_hub(row)
