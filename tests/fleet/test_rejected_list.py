"""A hub whose list was changed with SQL still tells its servers what was decided."""

from __future__ import annotations

import json

import pytest
from django.db.models import QuerySet
from django.utils import timezone

from amesh_django.fleet import delivery, servers, signed_list
from amesh_django.models import AuditEvent, Device, DeviceGroup, Server
from amesh_django.server import server_device
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list, integrity
from authmesh.device.grants import Grant
from authmesh.protocol.encoding import b64url_decode
from authmesh.protocol.fleet.events import key_hash
from authmesh.protocol.keys import encode_public_key
from tests.fleet.peers import Clock, Peer
from tests.fleet.servers import add_server, follow, hub, laptops, message, told

pytestmark = pytest.mark.usefixtures("db", "amesh_server")
IN_SHOP = Grant(groups=frozenset({"shop"}))


@pytest.fixture
def server() -> Server:
    hub().put_group("shop", ["orders:read"])
    signed_list.reset()
    return add_server(scope_of_events="enroll", groups=["shop"])[0]


def damage() -> None:
    """Change the group and the rows outside Django."""
    QuerySet(DeviceGroup).update(scopes_json='["orders:*"]')
    QuerySet(Device).filter(role="controller").update(friendly_name="changed with SQL")
    current_list().distrust()


def lose(kind: str) -> None:
    """Remove an event that is older than what the server lacks."""
    AuditEvent.objects.filter(kind=kind).order_by("seq")[0].delete()


@pytest.mark.parametrize("is_lost", [False, True], ids=["in the log", "nowhere"])
def test_groups_that_were_changed_hold_up_nothing(server: Server, is_lost: bool) -> None:
    one, two = (device.identity.device_id for device in laptops(2, permissions={"scopes": ["stock:read"]}))
    after = servers.head().revision
    hub().grant([one], IN_SHOP)
    if is_lost:
        lose("group")
    damage()
    hub().revoke_all([two])
    found = message(server, after=after)
    assert told(found) == [("trust", one), ("revoke", two)]
    trusted = found.events[0].trusted
    assert trusted is not None and trusted.scopes == (("stock:read",) if is_lost else ("orders:read", "stock:read"))


@pytest.mark.parametrize("is_lost", [False, True], ids=["in the log", "nowhere"])
def test_other_scopes_of_a_group_whose_members_are_not_certain(server: Server, is_lost: bool) -> None:
    one, two, _three = (device.identity.device_id for device in laptops(3))
    hub().grant([one], IN_SHOP)
    after = servers.head().revision
    hub().put_group("shop", ["orders:write"])
    if is_lost:
        lose("trust")
    damage()
    hub().revoke_all([two])
    assert told(message(server, after=after)) == [("revoke" if is_lost else "trust", one), ("revoke", two)]


@pytest.mark.parametrize("is_lost", [False, True], ids=["in the log", "nowhere"])
def test_what_the_rows_said_is_in_the_log(server: Server, is_lost: bool) -> None:
    devices, (other,) = laptops(4), laptops(1)
    one, away, gone, purged = (device.identity.device_id for device in devices)
    hub().grant([one], IN_SHOP)
    hub().suspend([away])
    hub().revoke_all([gone, purged])
    hub().purge(purged)
    if is_lost:
        AuditEvent.objects.filter(device_id=other.identity.device_id).delete()
    damage()
    found = message(server, epoch="", after=0)
    expected = {("suspend", away), ("trust", one), ("revoke", other.identity.device_id)}
    assert {*told(found)} == ({("suspend", away)} if is_lost else expected)
    own = server_device().identity
    listed = signed_list.verify(found.revocations, issuer=own.device_id, issuer_key=own.public_key, now=found.issued_at)
    assert {found.key for found in listed.revoked} == {key_hash(device.identity.public_key) for device in devices[2:]}


@pytest.mark.parametrize("is_its_own", [True, False], ids=["its own key", "the key of another device"])
def test_a_device_that_the_log_does_not_know_is_revoked_at_the_servers(server: Server, is_its_own: bool) -> None:
    plain, _itself = add_server("https://other.example/amesh/")
    victim, forged = EphemeralDevice("victim"), EphemeralDevice("forged")
    name, after = forged.identity.device_id, servers.head().revision
    key = (forged if is_its_own else victim).identity.public_key
    QuerySet(Device).bulk_create(
        [
            Device(
                device_id=name,
                public_key=encode_public_key(key),
                role="controller",
                added_at=timezone.now(),
                revision=1,
            )
        ]
    )
    current_list().distrust()
    hub().revoke_all([name], reason="forged with SQL")
    expected = [("revoke", name)] if is_its_own else []
    own = server_device().identity
    for one in (server, plain):
        found = message(one, after=after, with_list=True)
        assert told(found) == expected
        assert [event.key for event in found.events] == [key_hash(key)] * is_its_own
        listed = signed_list.verify(
            found.revocations, issuer=own.device_id, issuer_key=own.public_key, now=found.issued_at
        )
        assert [revoked.key for revoked in listed.revoked] == [key_hash(key)] * is_its_own


def test_a_list_that_is_rejected_after_a_large_reseal_still_goes_out(
    monkeypatch: pytest.MonkeyPatch, other: Peer, clock: Clock
) -> None:
    """The log has all rows then, in several events."""
    monkeypatch.setattr(integrity, "MAX_RESEALED", 1)
    server = follow(other)
    one, two, three = (device.identity.device_id for device in laptops(3))
    hub().revoke_all([three], reason="lost")
    QuerySet(Device).update(friendly_name="resealed")
    hub().reseal(by="alice")
    delivery.deliver(server.pk, now=clock)
    assert Server.objects.get().acked == servers.head().revision
    QuerySet(Device).filter(device_id=two).update(friendly_name="changed with SQL")
    current_list().distrust()
    hub().revoke_all([one], reason="lost")
    delivery.deliver(server.pk, now=clock)
    row = Server.objects.get()
    assert (row.acked, row.last_error) == (servers.head().revision, "")
    claims = json.loads(b64url_decode(message(server, epoch="", after=0).revocations.split(".")[1]))
    assert len(claims["revoked"]) == 2
