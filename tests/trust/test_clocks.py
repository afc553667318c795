"""Clocks that differ: a device that was revoked stays revoked on a host whose clock is behind."""

from __future__ import annotations

import datetime as dt
import time

import pytest
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent
from amesh_django.trust import current, current_list
from amesh_django.trust.change import Change
from amesh_django.trust.verified import KnownDevice
from authmesh.protocol.errors import DeviceNotFound
from tests.trust.test_database_allow_list import entry

pytestmark = pytest.mark.usefixtures("default_database", "amesh_server")


def known(number: int) -> KnownDevice:
    return current_list().snapshot().by_key[entry(number).public_key]


def rotate(old: int, new: int, *, seconds: int = 600) -> None:
    """Let one device replace another one, as rotation does."""
    until = timezone.now().replace(microsecond=0) + dt.timedelta(seconds=seconds)

    def work(pending: Change) -> None:
        row = pending.select(device_id=entry(old).device_id)[0]
        pending.update(
            row,
            AuditEvent.Kind.REVOKE,
            revoked_at=until,
            revoked_by=entry(new).device_id,
            revoke_reason="rotated",
        )

    current_list().change("test", work)


def test_a_revocation_counts_on_a_host_whose_clock_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = DatabaseAllowList(by="alice")
    for number in (1, 2, 3):
        devices.add(entry(number))
    current_list().snapshot()
    devices.revoke(entry(1).device_id, reason="rotated")  # as a person may call it
    rotate(2, 3)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    monkeypatch.setattr(timezone, "now", lambda: dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    for _process in range(2):
        assert known(1).revoked
        assert not known(2).revoked  # the end of a rotation is a time, and the clock says whether it has come
        current.reset()
    with pytest.raises(DeviceNotFound):
        devices.revoke(entry(1).device_id)
