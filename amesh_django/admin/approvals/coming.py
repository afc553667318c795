"""How devices came to wait, as the audit log says it, for a whole page at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from amesh_django.models import AuditEvent, Device
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database
from authmesh.protocol.display import clean_line

from .. import genuine, shown

# Maximum number of events that are read for each device of a page.
_MAX_EVENTS = 10


@dataclass(frozen=True, slots=True)
class Coming:
    """How a device came.

    Attributes:
        how: in a sentence.
        address: from which it enrolled; empty if it did not.
    """

    how: str
    address: str = ""


def coming(devices: Sequence[Device]) -> dict[str, Coming]:
    """Return device ID → how the device came. One query. Events that amesh did not write are left out."""
    kinds = (AuditEvent.Kind.TRUST, AuditEvent.Kind.ROTATE, AuditEvent.Kind.TOKEN_USED)
    ids = [device.device_id for device in devices]
    rows = AuditEvent.objects.using(database()).filter(device_id__in=ids, kind__in=kinds).order_by("-id")
    sealed = genuine.sealed_or_none()
    trusted: dict[str, AuditEvent] = {}
    addresses: dict[str, str] = {}
    for _pk, event in each_row(rows, _MAX_EVENTS * len(devices)):
        if event is None or not genuine.is_genuine(sealed, event):
            continue
        if event.kind == AuditEvent.Kind.TRUST or (
            event.kind == AuditEvent.Kind.ROTATE and event.device_id not in event.actor
        ):
            trusted.setdefault(event.device_id, event)
        elif event.kind == AuditEvent.Kind.TOKEN_USED:
            addresses.setdefault(event.device_id, clean_line(event.address))
    return {
        device.device_id: Coming(_how(device, trusted.get(device.device_id)), addresses.get(device.device_id, ""))
        for device in devices
    }


def _how(device: Device, event: AuditEvent | None) -> str:
    if event is None:
        return _("not known")
    by = clean_line(event.actor) or shown.NOTHING
    if event.kind == AuditEvent.Kind.ROTATE:
        return _("with a new key: %(rotation)s") % {"rotation": by}
    if event.actor_type == "token":
        return _("with the %(token)s") % {"token": by}
    if event.actor_type == "hub":
        return _("by the %(hub)s") % {"hub": by}
    if device.added_by == Device.AddedBy.MANUAL:
        return _("added by hand, by %(person)s") % {"person": by}
    return _("paired, by %(person)s") % {"person": by}


def approvers(device_ids: Sequence[str]) -> dict[str, str]:
    """Return device ID → who approved the device last, as the audit log says it. One query."""
    rows = AuditEvent.objects.using(database()).filter(device_id__in=device_ids, kind=AuditEvent.Kind.APPROVE)
    sealed = genuine.sealed_or_none()
    found: dict[str, str] = {}
    for _pk, event in each_row(rows.order_by("-id"), _MAX_EVENTS * len(device_ids)):
        if event is not None and genuine.is_genuine(sealed, event):
            found.setdefault(event.device_id, clean_line(event.actor))
    return found
