"""The devices and groups of the allow list as the seal binds them, also if the database does not have them any more.

People can revoke devices in a list that was changed outside Django, so its hub must be able to tell its servers. The audit log has what was sealed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from amesh_django.kinds import EventKind
from amesh_django.models import Device
from amesh_django.trust import SealedList
from amesh_django.trust.chain import data_of
from amesh_django.trust.damage import CHUNK_SIZE, UNREADABLE
from amesh_django.trust.groups import Groups
from amesh_django.trust.sealing import row_values
from amesh_django.trust.verified import failure, read_groups
from authmesh.protocol.errors import AllowListIntegrityFailure
from authmesh.protocol.multiset import MODULUS


def sealed_groups(sealed: SealedList) -> Groups:
    """Return the groups, verified. If neither the table nor the audit log has them as they were sealed, no device has scopes by a group.

    Raises:
        AllowListIntegrityFailure: the seal is forged.
    """
    row = sealed.read_seal()
    if row is None:
        return Groups()
    if not sealed.is_genuine(row):
        raise failure("seal_mismatch")
    try:
        return read_groups(sealed, row)
    except (AllowListIntegrityFailure, *UNREADABLE):
        found = Groups(_groups_in_log(sealed).items())
        return found if found.digest == row.groups else Groups()


def sealed_rows(sealed: SealedList) -> tuple[Sequence[Device], bool]:
    """Return the rows of all devices, and True if they are those that were sealed.

    In a list that does not match its seal, they are what the audit log has. If that is not what was sealed, either, a row may be an older one.

    Raises:
        AllowListIntegrityFailure: the seal is missing or forged, or an older list was restored.
    """
    rows = Device.objects.using(sealed.using).order_by()
    try:
        found = sealed.verified(
            lambda: list(rows.iterator(chunk_size=CHUNK_SIZE)),
            lambda known, devices: len(devices) == len(known.by_key),
        )
    except AllowListIntegrityFailure as error:
        if error.reason != "rows_mismatch":
            raise
    else:
        return found, True
    logged, row = sealed.sealed_devices(), sealed.read_seal()
    if row is None or not sealed.is_genuine(row):
        raise failure("seal_mismatch")
    keyed = sealed.under(row)
    total = sum(keyed.hash_row(row_values(device)) for device in logged) % MODULUS
    return logged, (total, len(logged)) == (keyed.sealed_total(row), row.count)


def _groups_in_log(sealed: SealedList) -> dict[str, str]:
    """Return the groups as the audit log has them: name → scopes (a JSON text)."""
    found: dict[str, str] = {}
    for change in sealed.events(kind=EventKind.GROUP, device_id=""):
        if change is None or not sealed.is_genuine_event(change):
            continue
        data = data_of(change)
        if "scopes" in data:
            found[change.subject] = json.dumps(data["scopes"])
        else:
            found.pop(change.subject, None)
    return found
