"""Importing: a person brings the signed list of a hub to a server that cannot reach it (docs/fleet.md)."""

from __future__ import annotations

from typing import NamedTuple

from amesh_django.decisions.hubs import author
from amesh_django.models import Device, Hub
from amesh_django.server import server_device
from amesh_django.trust import SealedList, current_list
from amesh_django.trust.hubs import HubRows
from amesh_django.trust.sealing import actor
from authmesh.protocol.display import clean_line
from authmesh.protocol.enrollment_errors import ServerBusy
from authmesh.protocol.fleet.errors import NotAHub, UnverifiedMessage
from authmesh.protocol.fleet.feed import FeedMessage

from . import signed_list
from .following import newest_id, speakers
from .receiving import apply_message


class Imported(NamedTuple):
    """The result.

    Attributes:
        hub: device ID of the hub.
        serial: revision of the hub's list.
        keys: number of keys in the signed list.
        revoked: number of devices of this server that were revoked by it.
    """

    hub: str
    serial: int
    keys: int
    revoked: int


def import_list(jws: str, *, now: float) -> Imported:
    """Revoke the devices of this server whose keys are in the signed list of a hub, and keep the other keys.

    ``HUB_MAX_PER_MINUTE`` is not for that: it holds back a hub whose key was stolen until a person looks, and a person has brought the list.

    Args:
        jws: the list.
        now: Unix seconds.

    Raises:
        UnverifiedMessage: the hub did not sign it, it has expired, or it is older than what this server knows. Nothing was changed.
        NotAHub: this server does not follow the hub. Nothing was changed.
        ServerBusy: the hub sent something newer meanwhile. Nothing is lost.
        AmeshError: as for :func:`~amesh_django.fleet.receiving.apply_message`.
    """
    sealed = current_list()
    issuer = signed_list.issuer_of(jws)
    known = sealed.snapshot()
    found = [one for one in speakers(known, now) if one[1].device_id == issuer]
    if not found:
        raise NotAHub(
            f"The list is from {clean_line(issuer)[:32]}, which is not a hub of this server. Nothing was changed."
        )
    ((public_key, device),) = found
    hub = newest_id(known, issuer)
    row = _row(sealed, hub)
    newest = (row.list_epoch, row.list_serial)
    listed = signed_list.verify(jws, issuer=issuer, issuer_key=public_key, now=now, newest=newest)
    if row.epoch and listed.epoch != row.epoch and listed.issued_at <= row.issued_at:
        raise UnverifiedMessage(
            "The list is from before the hub was resealed or restored. Nothing was changed.",
            hint="Export a new one at the hub.",
        )
    before = _revoked_by(sealed, hub)
    is_known = listed.epoch == row.epoch
    message = FeedMessage(
        issuer=issuer,
        audience=server_device().identity.device_id,
        url=listed.url,
        epoch=listed.epoch,
        # It does not say what was lifted, suspended, or trusted meanwhile: the events up to its serial are still to come.
        after=row.applied if is_known else 0,
        until=row.applied if is_known else 0,
        head=max(row.head, listed.serial) if is_known else listed.serial,
        issued_at=listed.issued_at,
        revocations=jws,
    )
    # The hub was heard when it signed the list, and not now.
    heard = row.last_contact_at.timestamp() if row.last_contact_at is not None else 0.0
    apply_message(message, device, now=now, heard_at=min(now, max(heard, listed.issued_at)))
    row = _row(sealed, hub)
    if row.list_epoch != listed.epoch or row.list_serial < listed.serial:
        raise ServerBusy(
            "The hub said something newer while its list was imported, so the list may be applied in part only.",
            hint="Run the command again.",
        )
    return Imported(issuer, listed.serial, len(listed.revoked), _revoked_by(sealed, hub) - before)


def _row(sealed: SealedList, device_id: str) -> Hub:
    """Return what this server has of a hub. A row that amesh did not write counts as none."""
    rows = HubRows(sealed.using, sealed.all_keys, sealed.log_keys())
    return next((one for one in rows.every() if one.device_id == device_id and rows.is_genuine(one)), Hub())


def _revoked_by(sealed: SealedList, hub: str) -> int:
    rows = Device.objects.using(sealed.using).filter(revoked_at__isnull=False, revoked_by=actor(author(hub)))
    return rows.count()
