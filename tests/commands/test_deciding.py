"""approve, deny, suspend, lift, reinstate, and what REQUIRE_APPROVAL and MAX_KEY_AGE_DAYS do: by command and by method."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import override_settings

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList, DeviceDenied
from amesh_django.decisions import Grant, WrongState
from amesh_django.models import AuditEvent, Device
from amesh_django.states import ROTATED
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.sealing import now
from authmesh.protocol.errors import ControllerLimitReached, DeviceNotFound, InvalidInput
from tests.support.front_ends import id_of, line_of

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


def run(name: str, *words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command(f"amesh_{name}", *words, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{err.getvalue()}{error}"
    return 0, out.getvalue() + err.getvalue()


def devices_of(name: str, *words: str) -> list[dict[str, Any]]:
    code, text = run(name, *words, "--json")
    assert code == 0, text
    found: list[dict[str, Any]] = json.loads(text)["devices"]
    return found


def state(device: EphemeralDevice) -> str:
    row = Device.objects.get(device_id=id_of(device))
    known = current_list().snapshot().by_key[device.identity.public_key]
    assert known.state(now().timestamp()) == row.state
    return row.state


@pytest.fixture
def devices() -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


@pytest.fixture
def laptop(devices: DatabaseAllowList) -> EphemeralDevice:
    device = EphemeralDevice("laptop")
    devices.add(device.entry(permissions={"scopes": ["orders:read"]}))
    return device


@pytest.fixture
def _approval(settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True, "MAX_KEY_AGE_DAYS": 90}
    lifecycle.reset()


@pytest.mark.usefixtures("_approval")
def test_a_new_controller_waits_for_approval(devices: DatabaseAllowList, settings: Any) -> None:
    one, two, target = EphemeralDevice("one"), EphemeralDevice("two"), EphemeralDevice("target")
    code, text = run("trust", f"{line_of(one)} {line_of(two)}", "--role", "controller", "--yes")
    assert code == 0 and "waits for approval" in text and f"amesh_approve {id_of(one)}" in text
    assert run("trust", line_of(target), "--role", "target", "--yes")[0] == 0
    assert [state(each) for each in (one, two, target)] == ["pending", "pending", "active"]
    row = Device.objects.get(device_id=id_of(one))
    assert row.expires_at is not None and dt.timedelta(89) < row.expires_at - now() <= dt.timedelta(90)
    # Turning the setting off approves nobody, and trusting again neither.
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": False}
    lifecycle.reset()
    devices.add(one.entry())
    assert state(one) == "pending"
    (found,) = devices_of("approve", "one", "--yes", "--by", "bob")
    assert (found["state"], found["changed"]) == ("active", True)
    assert AuditEvent.objects.latest("id").actor.startswith("bob")
    assert state(one) == "active" and state(two) == "pending"
    assert "as before" in run("approve", "one")[1]  # asks nothing
    # A target that becomes a controller waits as well.
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}
    lifecycle.reset()
    devices.add_all([target.entry()])
    assert state(target) == "pending"
    three = EphemeralDevice("three")
    code, text = run("trust", line_of(three), "--role", "controller", "--yes", "--approve")
    assert code == 0 and state(three) == "active" and "waits" not in text
    assert devices.verify().ok


@pytest.mark.usefixtures("_approval")
def test_a_denied_key_comes_back_only_by_a_decision(devices: DatabaseAllowList) -> None:
    device = EphemeralDevice("stranger")
    devices.add(device.entry())
    (found,) = devices_of("deny", "stranger", "--reason", "not ours", "--yes")
    assert (found["state"], state(device)) == ("denied", "denied")
    assert devices.count("controller") == 0
    code, text = run("trust", line_of(device), "--role", "controller", "--yes")
    assert (code, state(device)) == (1, "denied")
    assert f"amesh_approve {id_of(device)}" in text and "not ours" in run("list", "--all")[1]
    with pytest.raises(DeviceDenied):
        devices.add(device.entry())
    assert "stranger" not in run("list")[1]
    # It counts again once it is approved, so there must be room.
    with override_settings(AMESH={**_settings(), "MAX_CONTROLLERS": 1}):
        lifecycle.reset()
        other = EphemeralDevice("other")
        DatabaseAllowList(approved=True).add(other.entry())
        code, text = run("approve", id_of(device), "--yes")
        assert (code, state(device)) == (1, "denied") and "1 controller" in text
        with pytest.raises(ControllerLimitReached):
            devices.approve([id_of(device)])
    lifecycle.reset()
    assert run("approve", id_of(device), "--yes")[0] == 0 and state(device) == "active"


def _settings() -> dict[str, Any]:
    from django.conf import settings

    return dict(settings.AMESH)


def test_suspend_and_lift(devices: DatabaseAllowList, laptop: EphemeralDevice) -> None:
    (found,) = devices_of("suspend", "laptop", "--until", "30d", "--reason", "audit", "--yes")
    assert found["state"] == state(laptop) == "suspended" and found["suspendedUntil"]
    text = run("list")[1]
    assert "[suspended]" in text and "audit" in text and "until" in text
    assert (
        "laptop" in run("list", "--state", "suspended")[1]
        and "am_" not in run("list", "--state", "active")[1].split("Trusted")[1]
    )
    assert run("suspend", "laptop", "--until", "2001-01-01T00:00:00Z", "--yes")[0] == 2
    assert run("suspend", "laptop", "--until", "soon", "--yes")[0] == 2
    (found,) = devices_of("suspend", "laptop", "--yes")  # no end any more
    assert found["suspendedUntil"] is None
    (found,) = devices_of("lift", "laptop")
    assert (found["state"], found["changed"], found["scopes"]) == ("active", True, ["orders:read"])
    (found,) = devices_of("lift", id_of(laptop)[:8])
    assert found["changed"] is False
    server = EphemeralDevice("called")
    devices.add(server.entry("target"))
    with pytest.raises(WrongState, match="is a target"):
        devices.suspend([id_of(laptop), id_of(server)])
    with pytest.raises(WrongState, match="does not wait"):
        devices.deny([id_of(laptop)])
    with pytest.raises(InvalidInput, match="future"):
        devices.suspend([id_of(laptop)], until=now())
    assert state(laptop) == "active"  # all of them, or none
    assert devices.verify().ok


def replace(devices: DatabaseAllowList, old: EphemeralDevice) -> EphemeralDevice:
    """Replace the key of a device, as a rotation does. The old one stays valid."""
    new = EphemeralDevice("laptop")
    devices.add(new.entry())
    end = now() + dt.timedelta(seconds=600)
    current_list().change(
        "rotation",
        lambda pending: pending.update(
            pending.find(device_id=id_of(old)), revoked_at=end, revoked_by=id_of(new), revoke_reason=ROTATED
        ),
    )
    assert state(old) == "active"
    return new


def test_a_replaced_key_is_suspended_with_the_device(devices: DatabaseAllowList, laptop: EphemeralDevice) -> None:
    new = replace(devices, laptop)
    devices.suspend([id_of(new)])
    assert (state(laptop), state(new)) == ("suspended", "suspended")
    devices.lift([id_of(new)])
    assert (state(laptop), state(new)) == ("active", "active")


def test_what_is_taken_from_a_device_is_taken_from_its_replaced_key(
    devices: DatabaseAllowList, laptop: EphemeralDevice
) -> None:
    old, robot = id_of(laptop), get_user_model().objects.create_user("robot")
    devices.put_group("shop", ["orders:list"])
    devices.grant([old], Grant(("shell", "rename"), ("orders:read", "orders:write"), ("shop",)))
    new = replace(devices, laptop)

    def row() -> Device:
        return Device.objects.get(device_id=old)

    end = now().replace(microsecond=0) + dt.timedelta(days=2)
    taken = Grant(("shell",), ("orders:read",), ("shop",))
    devices.grant([id_of(new)], Grant(("other",)), taken=taken, expires_at=end)
    assert row().permissions == {"scopes": ["orders:write"], "rename": True}
    assert (row().groups, row().expires_at) == ([], end)
    devices.set_expiry([id_of(new)], end + dt.timedelta(days=1))
    assert row().expires_at == end
    devices.set_expiry([id_of(new)], end - dt.timedelta(days=1))
    assert row().expires_at == end - dt.timedelta(days=1)
    devices.set_permissions(id_of(new), {})
    assert row().permissions == {}
    for user in (robot, None):
        devices.map_user(id_of(new), user)
        assert row().user == user
    assert devices.verify().ok


@pytest.mark.usefixtures("_approval")
def test_approving_a_device_that_also_is_suspended_or_expired_asks(devices: DatabaseAllowList) -> None:
    one, two = EphemeralDevice("one"), EphemeralDevice("two")
    devices.add_all([one.entry(), two.entry()])
    devices.suspend([id_of(one)])
    current_list().change(
        "test", lambda pending: pending.update(pending.find(device_id=id_of(two)), expires_at=now() - dt.timedelta(1))
    )
    assert (state(one), state(two)) == ("suspended", "expired")
    for device in (one, two):
        code, text = run("approve", id_of(device), "--no-input")
        assert code != 0 and "Approve" in text
        assert Device.objects.get(device_id=id_of(device)).pending_since is not None


def test_a_revocation_that_is_dated_later_can_be_undone(devices: DatabaseAllowList, laptop: EphemeralDevice) -> None:
    devices.revoke(id_of(laptop))
    later = now() + dt.timedelta(minutes=5)  # by a host whose clock is ahead
    current_list().change(
        "test", lambda pending: pending.update(pending.find(device_id=id_of(laptop)), revoked_at=later)
    )
    assert state(laptop) == "revoked" and devices.reinstate(id_of(laptop)).state == "active"


def test_reinstate_needs_the_whole_device_id(devices: DatabaseAllowList, laptop: EphemeralDevice) -> None:
    device_id = id_of(laptop)
    with pytest.raises(WrongState, match="not revoked"):
        devices.reinstate(device_id)
    devices.revoke(device_id, reason="lost")
    for word in ("laptop", device_id[:-1]):
        code, text = run("reinstate", word, "--yes")
        assert (code, state(laptop)) == (2, "revoked") and "whole device ID" in text
    (found,) = devices_of("reinstate", device_id, "--yes", "--by", "carol")
    assert (found["state"], found["scopes"], found["user"]) == ("active", ["orders:read"], None)
    assert state(laptop) == "active" and devices.verify().ok
    with pytest.raises(DeviceNotFound):
        devices.suspend(["am_unknown"])


def test_sudo_names_the_person(
    devices: DatabaseAllowList, laptop: EphemeralDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "dave")
    run("suspend", "laptop", "--yes")
    assert AuditEvent.objects.latest("id").actor == "dave (manage.py)"
    assert Device.objects.get().suspended_by == "dave (manage.py)"
