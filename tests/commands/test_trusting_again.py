"""trust, for a device that the list of a server has already, in whatever state."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant, any_row
from amesh_django.models import Device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.sealing import now
from tests.commands.test_management import answer, call
from tests.support.front_ends import id_of, line_of

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


@pytest.fixture
def phone() -> EphemeralDevice:
    """A controller."""
    device = EphemeralDevice("phone")
    DatabaseAllowList().add(device.entry())
    return device


@pytest.mark.parametrize("state", ["suspended", "pending", "expired"])
@pytest.mark.parametrize("many", [False, True])
def test_what_is_replaced_is_shown(
    phone: EphemeralDevice, monkeypatch: pytest.MonkeyPatch, state: str, many: bool
) -> None:
    devices = DatabaseAllowList()
    devices.put_group("store", ["stock:read"])
    given, end = Grant(permissions=["notes"], scopes=["orders:read"], groups=["store"]), now() + dt.timedelta(days=1)
    devices.grant([id_of(phone)], given, expires_at=end)
    columns = {
        "suspended": {"suspended_at": now()},
        "pending": {"pending_since": now()},
        "expired": {"expires_at": end - dt.timedelta(days=2)},
    }[state]
    current_list().change("alice", lambda pending: pending.update(any_row(pending, id_of(phone)), **columns))
    answer(monkeypatch, "n\n")
    lines = f"{line_of(phone)} {line_of(EphemeralDevice())}" if many else line_of(phone)
    said = " ".join(call("trust", lines, "--role", "controller").err.split())
    assert f"It is already in the allow list ({state}), added 2" in said
    assert "Permissions notes -> none" in said and "Scopes orders:read -> none" in said
    assert "Groups store, as before" in said and re.search(r"Expires 2\d{3}-\S+ \S+ UTC, as before", said)
    assert "and trusting it does not change that." in said
    assert call("trust", line_of(phone), "--role", "controller", "--yes").out.startswith("Refreshed: ")
    row = Device.objects.get(device_id=id_of(phone))
    assert (row.state, row.groups, row.permissions) == (state, ["store"], {})


@pytest.mark.parametrize("many", [False, True])
def test_a_suspended_controller_needs_no_further_room(phone: EphemeralDevice, settings: Any, many: bool) -> None:
    other = EphemeralDevice("other")
    DatabaseAllowList().add(other.entry())
    DatabaseAllowList().suspend([id_of(phone)])
    settings.AMESH = {**settings.AMESH, "MAX_CONTROLLERS": 2}
    lifecycle.reset()
    lines = f"{line_of(phone)} {line_of(other)}" if many else line_of(phone)
    done = call("trust", lines, "--role", "controller", "--yes")
    assert done.code == 0, done.err
