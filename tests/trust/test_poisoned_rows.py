"""Rows that somebody poisons with SQL: no such row stops a change or a revocation, and each is reported."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import placing
from amesh_django.audit.recording import record
from amesh_django.audit.verifying import verify
from amesh_django.models import AuditEvent, AuditSeal, Device
from amesh_django.trust import current_list
from tests.trust.test_revoking_anyway import ADDED, OTHER, STOLEN, devices, entry, forge

__all__ = ["devices"]

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


def forged_event(**columns: Any) -> None:
    AuditEvent.objects.create(**{"at": timezone.now(), "kind": "export", "mac": "f" * 64, **columns})


def fault() -> str:
    found = verify(current_list(), timezone.now()).fault
    return found.text if found is not None else ""


def revoked() -> int:
    return Device.objects.exclude(revoked_at=None).count()


@pytest.mark.parametrize("taken", ["last", "next", "counted"])
def test_no_primary_key_of_a_forged_event_stops_a_change(devices: DatabaseAllowList, taken: str) -> None:
    newest = AuditEvent.objects.latest("id").pk
    for pk in {"last": [2**63 - 1], "next": [newest + 1, newest + 2], "counted": [2**62 - 1, 2**62, 2**63 - 1]}[taken]:
        forged_event(id=pk)
    for number in (STOLEN, OTHER):
        devices.revoke(entry(number).device_id)
    record("export")
    assert revoked() == 2
    assert AuditEvent.objects.filter(kind="export").exclude(mac="f" * 64).count() == 1
    AuditEvent.objects.filter(mac="f" * 64).delete()
    assert placing.place_all(current_list()).events == 1
    assert fault() == ""


def test_no_number_of_a_forged_event_stops_a_change(devices: DatabaseAllowList) -> None:
    forged_event(seq=2**63 - 1)
    if connection.vendor == "sqlite":
        forge(
            "UPDATE amesh_auditevent SET seq = 'abc' WHERE mac = 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff'"
        )
    AuditSeal.objects.update(mac="f" * 64)
    devices.revoke(entry(STOLEN).device_id)
    assert revoked() == 1
    assert max(AuditEvent.objects.filter(kind="revoke").values_list("seq", flat=True)) < 10


def test_no_primary_key_of_a_forged_device_stops_new_devices(devices: DatabaseAllowList) -> None:
    """On SQLite, the highest primary key that a table has ever had counts, also after the row was deleted."""
    forge(ADDED.replace("(device_id", "(id, device_id").replace("SELECT ", f"SELECT {2**63 - 1}, "))
    forge("DELETE FROM amesh_device WHERE friendly_name = 'evil'")
    devices.add(entry(3))
    assert current_list().snapshot().by_key[entry(3).public_key].pk < 10
    assert devices.verify().ok
