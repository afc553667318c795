"""A hub replaces its own key: what it has said, and what people have decided in spite of it, belongs to the new key."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from django.db import connection

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import overview
from amesh_django.fleet.importing import import_list
from amesh_django.models import Device, Hub, HubEntry
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.device import LocalDevice
from authmesh.protocol.fleet.errors import NotAHub
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import TestHub, row, status
from tests.fleet.test_replaced_keys import end_overlap

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke and add devices, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke", "enroll")
    found.url = "https://hub.example/amesh/"
    found.greet()
    return found


def rotate(hub: TestHub, server: LocalDevice) -> EphemeralDevice:
    """Replace the key of a hub. Return its old key, which is valid until the overlap ends."""
    old, hub.device = hub.device, EphemeralDevice("hub")
    response = ask(old, hub.device, server)
    assert response.status_code == 200, response.content
    return old


def undo(hub: TestHub, revoked: EphemeralDevice, suspended: EphemeralDevice) -> list[object]:
    """Let a hub undo what it has said. Return what the server refused."""
    return [*hub.say(hub.event("reinstate", revoked), hub.event("lift", suspended)).refused]


def test_the_new_key_undoes_what_the_old_one_did(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """Also after several rotations, and after the overlap."""
    revoked, suspended, added = amesh_trust(), amesh_trust(), EphemeralDevice()
    hub.say(hub.event("revoke", revoked), hub.event("suspend", suspended), hub.trust(added))
    hub.say(hub.event("revoke", added))
    for _ in range(2):
        end_overlap(rotate(hub, amesh_server))
    assert undo(hub, revoked, suspended) == []
    assert hub.say(hub.trust(added)).refused == []
    assert [status(device) for device in (revoked, suspended, added)] == [200] * 3
    assert not current_list().hub_problems() and DatabaseAllowList().verify().ok


def test_what_it_knows_of_the_hub_stays(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """So the hub need not send its list again, and the server knows where it is, and when it was heard."""
    hub.say(hub.event("revoke", amesh_trust()))
    before = Hub.objects.values("epoch", "applied", "head", "issued_at", "url", "last_contact_at", "entries").get()
    old = rotate(hub, amesh_server)
    assert Hub.objects.values(*before).get() == before
    assert Hub.objects.get().device_id == hub.id and {*HubEntry.objects.values_list("hub", flat=True)} == {hub.id}
    assert [one.device_id for one in overview.hubs()] == [hub.id] != [old.identity.device_id]
    assert hub.say(hub.event("revoke", amesh_trust())).applied == 2
    assert not current_list().hub_problems()


def test_both_keys_may_send_in_the_overlap(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    first, second = amesh_trust(), amesh_trust()
    old = rotate(hub, amesh_server)
    new, hub.device = hub.device, old
    assert hub.say(hub.event("revoke", first)).refused == [] and hub.say().applied == 1
    hub.device = new
    assert hub.say(hub.event("reinstate", first), hub.event("revoke", second)).refused == []
    assert (status(first), row(second).revoked_by) == (200, hub.by)
    assert Hub.objects.get().device_id == hub.id and not current_list().hub_problems()
    end_overlap(old)
    hub.device = old
    assert hub.post(hub.message()).status_code == 401


def test_decisions_of_people_in_spite_of_the_hub_stay(hub: TestHub, amesh_server: LocalDevice) -> None:
    device = EphemeralDevice()
    word = hub.event("revoke", device)
    hub.say(word)
    DatabaseAllowList(by="person").add(device.entry())
    end_overlap(rotate(hub, amesh_server))
    hub.sent = 0
    hub.say(word)  # an old message
    hub.greet({device: word.serial}, head=1)
    assert status(device) == 200
    assert DatabaseAllowList(by="import").add_all([device.entry()]) == []


def test_nobody_else_is_the_hub(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """Neither another hub, nor a person whose name looks like one."""
    revoked, suspended, mine = amesh_trust(), amesh_trust(), amesh_trust()
    other = TestHub(amesh_server.identity.device_id).trusted("revoke")
    other.greet()
    other.say(other.event("revoke", revoked), other.event("suspend", suspended))
    DatabaseAllowList(by="hub am_0000000000000000").revoke(mine.identity.device_id)
    end_overlap(rotate(hub, amesh_server))
    assert undo(hub, revoked, suspended) == [(1, "revoked_here"), (2, "suspended_here")]
    assert hub.say(hub.event("reinstate", mine)).refused == [(3, "revoked_here")]


def test_the_new_key_is_no_object_of_its_events(hub: TestHub, amesh_server: LocalDevice) -> None:
    old = rotate(hub, amesh_server)
    assert [why for _serial, why in hub.say(hub.event("revoke", old)).refused] == ["is_the_hub"]


def test_damage_stays_visible(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    hub.say(hub.event("revoke", amesh_trust()), hub.event("revoke", amesh_trust()), hub.event("revoke", amesh_trust()))
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM amesh_hubentry WHERE serial = 1")
        cursor.execute("UPDATE amesh_hubentry SET event = 'lift' WHERE serial = 2")
    before = [text.replace(hub.id, "") for text in current_list().hub_problems()]
    rotate(hub, amesh_server)
    assert len([text.replace(hub.id, "") for text in current_list().hub_problems()]) == len(before) == 2


def test_a_key_with_words_of_its_own_is_not_taken(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    """It was a hub here, and was purged since. Two histories cannot become one."""
    other = TestHub(amesh_server.identity.device_id).trusted("revoke")
    other.greet([EphemeralDevice()])
    for action in ("revoke", "purge"):
        getattr(DatabaseAllowList(by="person"), action)(other.id)
    response = ask(hub.device, other.device, amesh_server)
    assert (response.status_code, response.json()["error"]) == (409, "key_known")
    assert Device.objects.filter(device_id=other.id).count() == 0


def test_lists_of_both_keys_are_imported_in_the_overlap(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    device, now = amesh_trust(), time.time()
    listed = hub.list({device: 3}, serial=3)
    old = rotate(hub, amesh_server)
    assert import_list(listed, now=now).revoked == 1
    assert row(device).revoked_by == hub.by and Hub.objects.get().list_serial == 3
    end_overlap(old)
    with pytest.raises(NotAHub):
        import_list(listed, now=now)
    assert import_list(hub.list({device: 3}, serial=4), now=now).revoked == 0
