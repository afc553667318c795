"""grant, rename and show in both front ends; group, map, purge and prune on a server."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant, GroupNotFound
from amesh_django.models import AllowListSeal, Device, DeviceActivity
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import FileAllowList, LocalDevice
from authmesh.protocol.allow_list import open_document
from authmesh.protocol.errors import AllowListError, InvalidInput
from tests.commands.test_deciding import run
from tests.commands.test_naming_devices import FrontEnd
from tests.support.directories import VECTORS
from tests.support.front_ends import invoke
from tests.trust.test_clocks import rotate
from tests.trust.test_database_allow_list import entry


@pytest.fixture(params=["amesh", "manage.py"])
def amesh(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    if request.param == "amesh":
        device: LocalDevice = EphemeralDevice("own").write(tmp_path / "device", max_controllers=10)
        return FrontEnd(FileAllowList(device), tmp_path / "device", monkeypatch)
    request.getfixturevalue("db")
    request.getfixturevalue("amesh_server")
    return FrontEnd(DatabaseAllowList(), None, monkeypatch)


@pytest.fixture
def devices(db: None, amesh_server: LocalDevice) -> DatabaseAllowList:
    return DatabaseAllowList(by="alice")


def scopes(device_id: str) -> set[str]:
    known = next(one for one in current_list().snapshot().by_key.values() if one.device_id == device_id)
    return set(known.scopes)


def test_scopes_and_permissions_are_granted_and_taken(amesh: FrontEnd) -> None:
    one, two = amesh.allow("one", "two")
    found = json.loads(amesh("grant", "one", two[:9], "--scope", "orders:read", "--scope", "stock:*", "--json").stdout)
    assert [device["changed"] for device in found["devices"]] == [True, True]
    assert amesh.trusted()[one] == {"scopes": ["orders:read", "stock:*"]}
    result = amesh("grant", "one", "--permission", "notes.write", "--scope", "orders:read", "--shell")
    assert "has now notes.write, shell, orders:read" in result.stdout
    assert amesh.trusted()[one] == {"scopes": ["orders:read", "stock:*"], "notes.write": True, "shell": True}
    assert amesh("grant", "one", "--scope", "stock:*", "--scope", "orders:read", "--remove").exit_code == 0
    assert amesh.trusted()[one] == {"notes.write": True, "shell": True}
    for words in (["--scope", "Orders"], ["--scope", "*"], [], ["--permission", "scopes"]):
        assert amesh("grant", "one", *words).exit_code == 2
    assert amesh("rename", "one", "office laptop").exit_code == 0
    shown = amesh("show", "office laptop", "two").stdout
    assert one in shown and "notes.write" in shown and "orders:read, stock:*" in shown and "active" in shown
    assert json.loads(amesh("show", "two", "--json").stdout)["devices"][0]["scopes"] == ["orders:read", "stock:*"]


def test_a_device_without_django_has_no_states(tmp_path: Path) -> None:
    result = invoke(["approve", "laptop"], "")
    assert result.exit_code == 2 and "approve is a command of a Django server only" in result.stderr


def test_groups_and_expiry(devices: DatabaseAllowList) -> None:
    laptop, phone = EphemeralDevice("laptop"), EphemeralDevice("phone")
    devices.add_all([laptop.entry(), phone.entry()])
    ids = [device.identity.device_id for device in (laptop, phone)]
    code, text = run("group", "add", "store", "--scope", "stock:read")
    assert code == 0 and "stock:read" in text
    code, text = run("group", "add", "store")
    assert code == 2 and "would lose all its scopes" in text and "group remove store" in text
    assert (
        run("group", "list", "--scope", "a:b")[0] == run("group", "remove", "store", "--scope", "a:b", "--yes")[0] == 2
    )
    code, text = run("grant", "laptop", "--group", "store", "--expires", "90d", "--remove")
    assert code == 2 and "contradict" in text
    code, text = run("grant", "laptop", "phone", "--group", "store", "--expires", "90d", "--scope", "orders:read")
    assert code == 0 and "orders:read, store and expires 2" in text
    assert [scopes(each) for each in ids] == [{"stock:read", "orders:read"}] * 2
    row = Device.objects.get(device_id=ids[0])
    assert row.revision == Device.objects.get(device_id=ids[1]).revision  # one change
    assert row.expires_at is not None and row.expires_at > timezone.now() + dt.timedelta(89)
    assert run("grant", "laptop", "--expires", "never")[0] == 0
    assert Device.objects.get(device_id=ids[0]).expires_at is None
    assert run("group", "add", "store", "--scope", "stock:*")[0] == 0
    assert scopes(ids[0]) == {"stock:*", "orders:read"}
    listed = json.loads(run("group", "list", "--json")[1])["groups"]
    assert listed == [{"name": "store", "scopes": ["stock:*"], "devices": ids}]
    code, text = run("grant", "laptop", "--group", "stores")
    assert code == 1 and "Known: store" in text
    with pytest.raises(GroupNotFound):
        devices.remove_group("other")
    with pytest.raises(InvalidInput, match="not a name"):
        devices.put_group("The Store", [])
    assert run("grant", "laptop", "--group", "store", "--remove")[0] == 0 and scopes(ids[0]) == {"orders:read"}
    code, text = run("group", "remove", "store", "--yes")
    assert code == 0 and scopes(ids[1]) == {"orders:read"} and not Device.objects.get(device_id=ids[1]).groups
    assert "There are no groups" in run("group", "list")[1]
    assert run("group", "list", "store")[0] == run("group", "add")[0] == 2
    assert devices.verify().ok


def test_names_that_the_settings_do_not_know(devices: DatabaseAllowList, settings: Any) -> None:
    devices.add(EphemeralDevice("laptop").entry())
    settings.AMESH = {**settings.AMESH, "SCOPES": {"orders:read": "Read orders."}, "PERMISSIONS": {"notes.write": "…"}}
    lifecycle.reset()
    code, text = run("grant", "laptop", "--scope", "order:read")
    assert code == 1 and "Did you mean orders:read?" in text
    code, text = run("grant", "laptop", "--permission", "notes.rite")
    assert code == 1 and "Did you mean notes.write?" in text
    code, text = run("group", "add", "store", "--scope", "order:read")
    assert code == 1 and "Did you mean orders:read?" in text
    assert run("grant", "laptop", "--scope", "orders:read", "--permission", "notes.write", "--shell")[0] == 0
    with pytest.raises(InvalidInput):
        devices.grant([Device.objects.get().device_id], Grant(scopes=["x:y"]))


def test_map_and_purge(devices: DatabaseAllowList) -> None:
    devices.add(EphemeralDevice("laptop").entry())
    get_user_model().objects.create_user("anna")
    assert run("map", "laptop", "nobody")[0] == run("map", "laptop")[0] == 2
    assert run("map", "laptop", "anna")[0] == 0 and Device.objects.get().user is not None
    assert run("map", "laptop", "--remove")[0] == 0 and Device.objects.get().user is None
    assert run("purge", "laptop", "--yes")[0] == 1
    devices.revoke(Device.objects.get().device_id)
    assert run("purge", "laptop", "--yes")[0] == 0 and not Device.objects.exists()
    assert devices.verify().ok


def test_a_key_that_is_replaced_and_still_accepted_is_not_purged(
    devices: DatabaseAllowList, amesh_server: LocalDevice
) -> None:
    for number in (1, 2):
        devices.add(entry(number))
    rotate(1, 2)
    with pytest.raises(AllowListError, match="still trusted"):
        devices.purge(entry(1).device_id)


def test_a_key_whose_successor_is_trusted_is_not_purged(devices: DatabaseAllowList, amesh_server: LocalDevice) -> None:
    """A revocation of the old key, such as one of a hub that knows no other, must reach the new ones."""
    names = [entry(number).device_id for number in (1, 2, 3)]
    for number in (1, 2, 3):
        devices.add(entry(number))
    for old, new in ((2, 3), (1, 2)):
        rotate(old, new, seconds=-1)
    for name in names[:2]:
        code, text = run("purge", name, "--yes")
        assert code == 1 and f"was replaced by {names[2]}, which is trusted" in " ".join(text.split())
        assert f"revoke {names[2]}" in text
    devices.revoke(names[2])
    assert run("purge", *names, "--yes")[0] == 0 and not Device.objects.exists() and devices.verify().ok


def test_many_devices_are_purged_in_one_change(devices: DatabaseAllowList, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one", "two", "three"]
    entries = [EphemeralDevice(name).entry() for name in names]
    devices.add_all(entries)
    devices.revoke_all([entry.device_id for entry in entries[:2]])
    with pytest.raises(AllowListError, match="still trusted; nothing was changed"):
        devices.purge_all([entry.device_id for entry in entries])
    devices.revoke(entries[2].device_id)
    before = AllowListSeal.objects.get().revision
    monkeypatch.setattr("amesh_django.management.grants.MAX_ROWS", 2)
    code, text = run("purge", *names, "--yes")
    assert code == 0 and text.count("Purged: ") == 3
    assert not Device.objects.exists() and AllowListSeal.objects.get().revision == before + 2
    assert devices.verify().ok


def test_prune(devices: DatabaseAllowList, settings: Any) -> None:
    assert "LAST_SEEN_SECONDS" in run("prune", "--unseen", "90d")[1]
    settings.AMESH = {**settings.AMESH, "LAST_SEEN_SECONDS": 60}
    lifecycle.reset()
    old, seen, target = EphemeralDevice("old"), EphemeralDevice("seen"), EphemeralDevice("called")
    past = timezone.now() - dt.timedelta(days=100)
    for device, role in ((old, "controller"), (seen, "controller"), (target, "target")):
        entry = device.entry(role)  # type: ignore[arg-type]
        devices.add(type(entry).new(entry.public_key, entry.friendly_name, entry.role, added_at=past))
    DeviceActivity.objects.create(device=Device.objects.get(friendly_name="seen"), last_seen_at=timezone.now())
    for wrong in ("999999d", "2099-01-01T00:00:00Z", "0d", "soon"):
        code, text = run("prune", "--unseen", wrong, "--yes")
        assert code == 2 and "at most 36500d" in text
    assert run("prune", "--unseen", "90d", "--no-input")[0] != 0
    assert Device.objects.get(friendly_name="old").state == "active"
    text = run("prune", "--unseen", "90d", "--yes", "--json")[1]
    found = json.loads(text)
    assert found == {"devices": [old.identity.device_id], "action": "suspend"}
    states = {row.friendly_name: row.state for row in Device.objects.all()}
    assert states == {"old": "suspended", "seen": "active", "called": "active"}
    assert "Nothing was changed" in run("prune", "--unseen", "90d")[1]
    assert run("prune", "--unseen", "90d", "--revoke", "--yes")[0] == 0
    assert Device.objects.get(friendly_name="old").state == "revoked" and devices.verify().ok


def test_an_export_has_active_devices_with_their_own_scopes(
    devices: DatabaseAllowList, amesh_server: LocalDevice
) -> None:
    one, two, three = EphemeralDevice("one"), EphemeralDevice("two"), EphemeralDevice("three")
    devices.add_all([one.entry(permissions={"scopes": ["orders:read"]}), two.entry(), three.entry()])
    devices.put_group("store", ["stock:read"])
    devices.grant([one.identity.device_id], Grant(groups=["store"]))
    devices.suspend([two.identity.device_id])
    devices.set_expiry([three.identity.device_id], timezone.now() + dt.timedelta(days=1))
    path = amesh_server.path / "exported.json"
    code, text = run("export", str(path))
    assert code == 0 and "(two) (suspended)" in text and "without its groups: " + one.identity.device_id in text
    entries, _ = open_document(
        path.read_text(), key_material=amesh_server.seal_secret(), device_id=amesh_server.identity.device_id
    )
    assert {entry.friendly_name: dict(entry.permissions) for entry in entries} == {
        "one": {"scopes": ["orders:read"]},
        "three": {},
    }


def test_the_reference_keeps_scopes_when_it_seals_a_list_again() -> None:
    """vectors/scopes.json: what the TypeScript implementation made of a list with scopes."""
    case = json.loads((VECTORS / "scopes.json").read_text("utf-8"))
    (entry,), is_old = open_document(
        case["file"], key_material=bytes.fromhex(case["hmac_key_material_hex"]), device_id=case["device_id"]
    )
    assert dict(entry.permissions) == case["permissions"] and not is_old
