"""A server takes in what a hub says: what each event does, and what it may not do."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from amesh_django import conf, lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.fleet import receiving
from amesh_django.models import AllowListSeal, AuditEvent, Device, Hub, HubEntry
from amesh_django.states import ROTATED
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from authmesh.device import LocalDevice
from authmesh.protocol.fleet.errors import PermissionMissing
from authmesh.protocol.fleet.events import Trusted
from authmesh.protocol.fleet.feed import Acknowledgement
from tests.enrollment.machines import come, make
from tests.enrollment.test_rotation import ask
from tests.fleet.hubs import EPOCH, PATH, TestHub, row, status

Trust = Callable[..., EphemeralDevice]
pytestmark = pytest.mark.django_db


@pytest.fixture
def hub(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may revoke, and whose list the server knows."""
    found = TestHub(amesh_server.identity.device_id).trusted("revoke")
    found.greet()
    return found


@pytest.fixture
def enroller(amesh_server: LocalDevice, db: None) -> TestHub:
    """A hub that may also add devices."""
    found = TestHub(amesh_server.identity.device_id).trusted("enroll")
    found.greet()
    return found


def test_a_revocation_of_the_hub_is_enforced_and_signed_for(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    assert reverse("amesh_django:feed") == PATH
    device = amesh_trust()
    assert status(device) == 200
    message = hub.message(hub.event("revoke", device, reason="lost"), url="https://hub.example/amesh/")
    client = AmeshClient(hub.device)
    response = client.post(PATH, message.to_json(), content_type="application/json")
    assert response.status_code == 200 and status(device) == 401
    nonce = response.wsgi_request.META["HTTP_AUTHORIZATION"].split("nonce=")[1].split(",")[0].strip('"')
    answer = Acknowledgement.from_json(
        response.json(),
        issuer=hub.id,
        audience=hub.server,
        nonce=nonce,
        server_key=amesh_server.identity.public_key,
    )
    assert (answer.epoch, answer.applied, answer.refused) == (EPOCH, 1, ())
    found = row(device)
    assert (found.revoked_by, found.revoke_reason) == (hub.by, "lost")
    event = AuditEvent.objects.get(device_id=found.device_id, kind="revoke")
    assert (event.actor, event.actor_type, event.text) == (hub.by, "hub", "lost")
    assert DatabaseAllowList().verify().ok and not DatabaseAllowList().verify().hubs
    kept = Hub.objects.get()
    assert (kept.applied, kept.head, kept.url, kept.entries) == (1, 1, "https://hub.example/amesh/", 1)


def test_each_event_does_what_it_says_and_undoes_only_that(hub: TestHub, amesh_trust: Trust) -> None:
    device, other = amesh_trust(), amesh_trust()
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    hub.say(hub.event("suspend", device, until=until, reason="holiday"))
    found = row(device)
    assert (found.state, found.suspended_by, found.suspend_reason) == ("suspended", hub.by, "holiday")
    assert found.suspended_until is not None and abs(found.suspended_until - until) < dt.timedelta(seconds=1)
    hub.say(hub.event("lift", device))
    assert row(device).state == "active" and status(device) == 200
    hub.say(hub.event("suspend", device, until=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)))
    assert row(device).suspended_at is None  # it was over when it came
    hub.say(hub.event("revoke", device), hub.event("suspend", other))
    assert (row(device).state, row(other).state) == ("revoked", "suspended")
    hub.say(hub.event("reinstate", device), hub.event("lift", other))
    assert row(device).state == row(other).state == "active"
    kinds = list(
        AuditEvent.objects.filter(actor=hub.by, revision__isnull=False).order_by("id").values_list("kind", flat=True)
    )
    assert kinds == ["suspend", "lift", "revoke", "suspend", "reinstate", "lift"]
    assert DatabaseAllowList().verify().ok and not DatabaseAllowList().verify().hubs


def test_what_people_here_decided_is_theirs(
    hub: TestHub, amesh_trust: Trust, django_capture_on_commit_callbacks: Any
) -> None:
    revoked, suspended = amesh_trust(), amesh_trust()
    people = DatabaseAllowList(by="person")
    people.revoke(revoked.identity.device_id)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    people.suspend([suspended.identity.device_id], until=end)
    with django_capture_on_commit_callbacks(execute=True):
        answer = hub.say(hub.event("reinstate", revoked), hub.event("lift", suspended))
    assert answer.refused == [(1, "revoked_here"), (2, "suspended_here")] and answer.applied == 2
    assert row(revoked).revoked_by == "person" and row(suspended).suspended_by == "person"
    # A longer suspension of the hub counts, but stays that of the person: the hub cannot lift it.
    hub.say(hub.event("suspend", suspended))
    assert row(suspended).suspended_until is None and row(suspended).suspended_by == "person"
    assert hub.say(hub.event("lift", suspended)).refused == [(4, "suspended_here")]
    hub.say(hub.event("revoke", revoked))
    assert row(revoked).revoked_by == "person"  # and a word that only confirms changes nothing
    assert AuditEvent.objects.filter(kind="feed_refused", actor=hub.by).count() == 1


def test_the_same_serial_again_and_an_older_one_change_nothing(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    first, second = hub.event("revoke", device), hub.event("reinstate", device)
    hub.say(first, second)
    revision = AllowListSeal.objects.get().revision
    for events in ((first,), (second,), (first, second)):
        assert hub.say(*events, after=0, head=2).applied == 2
    assert row(device).state == "active" and AllowListSeal.objects.get().revision == revision
    newer = hub.event("revoke", device)
    assert hub.say(second, newer, head=3).applied == 3 and row(device).state == "revoked"


def test_of_two_events_of_one_revision_about_a_key_the_later_counts(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    hub.say(hub.event("revoke", device, 5), hub.event("reinstate", device, 5), after=0)
    assert row(device).state == "active" and HubEntry.objects.get().event == "reinstate"


def test_a_message_without_events_does_not_touch_the_seal(hub: TestHub, amesh_trust: Trust) -> None:
    amesh_trust()
    seal = AllowListSeal.objects.values().get()
    before = Hub.objects.get()
    answer = hub.say(head=17, until=17)
    assert answer.applied == 17 and AllowListSeal.objects.values().get() == seal
    after = Hub.objects.get()
    assert after.head == 17 and after.mac != before.mac and after.last_contact_at >= before.last_contact_at
    # What concerns no device of this server is kept, and changes no row of the list.
    hub.say(hub.event("revoke", EphemeralDevice(), 18))
    assert AllowListSeal.objects.values().get() == seal and HubEntry.objects.count() == 1


def test_fifty_revocations_are_one_change(hub: TestHub, amesh_trust: Trust) -> None:
    devices = [amesh_trust() for _ in range(50)]
    revision = AllowListSeal.objects.get().revision
    hub.say(*[hub.event("revoke", device) for device in devices])
    assert AllowListSeal.objects.get().revision == revision + 1
    assert Device.objects.filter(revoked_by=hub.by).count() == HubEntry.objects.count() == 50


def test_a_gap_is_answered_with_what_is_applied(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    hub.say(hub.event("revoke", EphemeralDevice()))
    answer = hub.say(hub.event("revoke", device, 5), after=4, status=409)
    assert (answer.epoch, answer.applied, answer.needs_list) == (EPOCH, 1, False) and status(device) == 200
    contact = Hub.objects.get().last_contact_at
    assert hub.say(after=4, head=5, until=5, status=409).applied == 1 and Hub.objects.get().last_contact_at == contact


def test_who_is_far_behind_needs_the_list_and_gets_all(hub: TestHub, amesh_trust: Trust) -> None:
    device, late = amesh_trust(), amesh_trust()
    answer = hub.say(hub.event("revoke", late, 1), head=1002, status=409)
    assert answer.needs_list and status(late) == 200
    listed = hub.list({device: 700, late: 1}, serial=1500)
    answer = hub.say(after=1500, head=1502, until=1502, revocations=listed)
    assert answer.applied == 1502 and row(device).revoked_by == row(late).revoked_by == hub.by
    assert HubEntry.objects.get(device_id=device.identity.device_id).serial == 700
    assert hub.say(hub.event("reinstate", device, 1503)).applied == 1503 and row(device).state == "active"


def test_a_new_epoch_needs_the_list_which_only_adds(hub: TestHub, amesh_trust: Trust) -> None:
    kept, new, person = amesh_trust(), amesh_trust(), amesh_trust()
    hub.say(hub.event("revoke", kept), hub.event("revoke", person, reason="lost"))
    DatabaseAllowList(by="person").reinstate(person.identity.device_id)
    hub.epoch, hub.sent = "f" * 32, 0
    answer = hub.say(hub.event("revoke", new, 1), status=409)
    assert answer.needs_list and answer.epoch == EPOCH and status(new) == 200
    assert hub.say(status=409).needs_list
    # The list has the revocation that the person has undone since: it is older, and leaves that alone.
    hub.greet({new: 9, person: 2}, at=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1), until=9, head=9)
    assert [row(one).state for one in (kept, new, person)] == ["revoked", "revoked", "active"]
    hub.say(hub.event("revoke", person, 10))  # a later one counts
    assert row(person).state == "revoked"
    hub.epoch, hub.sent = EPOCH, 0
    assert hub.post(hub.message(hub.event("reinstate", new, 50), after=0)).json() == {"error": "older_epoch"}
    assert hub.post(hub.message(after=9, head=9, until=9)).status_code == 403
    assert row(new).state == "revoked" and Hub.objects.get().past == EPOCH


def test_a_smaller_head_is_reported_and_changes_nothing(
    hub: TestHub,
    amesh_trust: Trust,
    caplog: pytest.LogCaptureFixture,
    django_capture_on_commit_callbacks: Any,
) -> None:
    device = amesh_trust()
    hub.say(head=40, until=40)
    later = hub.message().issued_at + 1
    with django_capture_on_commit_callbacks(execute=True):
        answer = hub.say(hub.event("revoke", device, 30), after=29, head=30, until=30, issued_at=later)
    assert (answer.applied, answer.epoch) == (40, EPOCH) and status(device) == 200
    assert [record.levelname for record in caplog.records if "restored from a backup" in record.message] == ["CRITICAL"]
    hub.say(after=29, head=30, until=30, issued_at=later)  # the log says so once a minute
    assert len([record for record in caplog.records if "restored from a backup" in record.message]) == 1
    assert AuditEvent.objects.filter(kind="feed_refused", reason_code="older_list").count() == 1


def test_a_message_that_another_one_has_overtaken_is_no_reason_to_worry(
    hub: TestHub, amesh_trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    device = amesh_trust()
    made = hub.message().issued_at
    hub.say(hub.event("revoke", device, 41), after=0, head=41, until=41, issued_at=made)
    caplog.clear()
    late = hub.event("reinstate", device, 39)
    assert hub.say(late, after=35, head=39, until=39, issued_at=made).applied == 41
    hub.say(after=35, head=39, until=39, issued_at=made)
    assert "restored from a backup" not in caplog.text and status(device) == 401


def test_an_unknown_key_is_kept_out_until_a_person_decides(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    device = EphemeralDevice()
    hub.say(hub.event("revoke", device, reason="stolen"))
    allow_list = DatabaseAllowList(by="program", attended=False)
    with pytest.raises(Exception, match=f"The hub {hub.id} has revoked the key") as raised:
        allow_list.add(device.entry())
    assert raised.value.code == "key_denied"  # type: ignore[attr-defined]
    assert [one.device_id for one in allow_list.add_all([device.entry()])] == [device.identity.device_id]
    assert not Device.objects.filter(device_id=device.identity.device_id).exists()
    amesh_trust(device)  # a person
    assert status(device) == 200
    entry = HubEntry.objects.get()
    assert (entry.allowed_epoch, entry.allowed_serial) == (EPOCH, 1) and entry.allowed_at is not None
    assert allow_list.add_all([device.entry()]) == []
    hub.say(hub.event("revoke", device, 1), after=0, head=1)  # the old word
    assert status(device) == 200
    hub.say(hub.event("revoke", device))  # a new one
    assert status(device) == 401


def test_purging_does_not_forget(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    event = hub.event("revoke", device)
    hub.say(event)
    people = DatabaseAllowList(by="person")
    people.purge(device.identity.device_id)
    assert people.add_all([device.entry()]) != []
    amesh_trust(device)
    hub.say(event, after=0, head=1)
    assert status(device) == 200
    hub.epoch, hub.sent = "f" * 32, 0
    hub.greet({device: 3}, at=event.at, until=3, head=3)
    assert status(device) == 200 and not people.verify().hubs


def test_revoking_a_key_revokes_what_has_replaced_it(
    hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice
) -> None:
    old, new = amesh_trust(), EphemeralDevice()
    assert ask(old, new, amesh_server).status_code == 200
    hub.say(hub.event("suspend", old))
    assert status(old) == status(new) == 401
    hub.say(hub.event("lift", old))
    assert status(old) == status(new) == 200
    hub.say(hub.event("revoke", old))
    assert status(old) == status(new) == 401 and row(new).revoked_by == hub.by
    third = EphemeralDevice()
    hub.say(hub.event("revoke", third))
    fresh = amesh_trust()
    assert ask(fresh, third, amesh_server).json() == {"error": "key_denied"}


def test_two_hubs_each_speak_for_what_they_did(hub: TestHub, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    second = TestHub(amesh_server.identity.device_id).trusted("revoke")
    second.greet()
    device, other = amesh_trust(), amesh_trust()
    hub.say(hub.event("revoke", device, reason="A"), hub.event("suspend", other, reason="A"))
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    second.say(second.event("revoke", device, reason="B"), second.event("suspend", other, until=end, reason="B"))
    assert row(device).revoked_by == row(other).suspended_by == hub.by
    hub.say(hub.event("reinstate", device), hub.event("lift", other))
    assert (row(device).revoked_by, row(device).revoke_reason) == (second.by, "B")
    assert (row(other).suspended_by, row(other).suspend_reason) == (second.by, "B")
    assert row(other).suspended_until is not None and status(device) == status(other) == 401
    assert [why for _serial, why in hub.say(hub.event("reinstate", device)).refused] == ["revoked_here"]
    second.say(second.event("reinstate", device), second.event("lift", other))
    assert status(device) == status(other) == 200


@pytest.mark.parametrize("event", ["revoke", "suspend", "reinstate", "lift"])
def test_a_hub_is_no_object_of_its_own_events(hub: TestHub, event: str) -> None:
    assert hub.say(hub.event(event, hub.device)).refused == [(1, "is_the_hub")]
    assert row(hub.device).state == "active" and not HubEntry.objects.exists()


def test_a_reason_that_reads_like_a_rotation_is_none(hub: TestHub, amesh_trust: Trust) -> None:
    device, later = amesh_trust(), dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    hub.say(hub.event("revoke", device, reason="rotated", at=later))
    assert status(device) == 401 and row(device).revoked_by == hub.by
    other = amesh_trust()
    answer = hub.say(
        hub.event("revoke", other, reason="rotated", effective_at=later, successor=device.identity.device_id)
    )
    assert [why for _serial, why in answer.refused] == ["permission_missing"] and status(other) == 200


# --- a hub that may add devices ---------------------------------------------------------------------------------------


def test_a_hub_adds_devices_within_what_it_may_grant(enroller: TestHub, settings: Any, amesh_trust: Trust) -> None:
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["orders:*", "print", "scopes"], "MAX_CONTROLLERS": 3}
    lifecycle.reset()
    device, greedy, known = EphemeralDevice("sensor"), EphemeralDevice(), amesh_trust()
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=9)
    answer = enroller.say(
        enroller.trust(device, permissions={"print": True}, scopes=("orders:read",), expires_at=end),
        enroller.trust(greedy, permissions={"shell": True}),
        enroller.trust(greedy, permissions={"revoke": True}),
        enroller.trust(greedy, permissions={"scopes": ["a:b"]}),
        enroller.trust(greedy, scopes=("other:read",)),
        enroller.trust(greedy, scopes=("orders:x:*", "*:*")),
        enroller.trust(known, permissions={"print": True}),
        enroller.trust(enroller.device, permissions={"print": True}),
        enroller.trust(EphemeralDevice()),
    )
    assert [why for _serial, why in answer.refused] == ["may_not_grant"] * 5 + [
        "known_here",
        "is_the_hub",
        "max_controllers",
    ]
    found = row(device)
    assert found.permissions == {"print": True, "scopes": ["orders:read"]} and found.user_id is None
    assert (found.friendly_name, found.role, found.state) == ("sensor", "controller", "active") and status(
        device
    ) == 200
    assert abs(found.expires_at - end) < dt.timedelta(seconds=1)
    assert row(known).permissions == {}
    # What people here have granted stays; what the hub has granted is what it says now.
    DatabaseAllowList().set_permissions(
        found.device_id, {"print": True, "shell": True, "scopes": ["orders:read", "mine:x"]}
    )
    later = end + dt.timedelta(days=1)
    enroller.say(enroller.trust(device, scopes=("orders:*",), expires_at=later))
    assert row(device).permissions == {"shell": True, "scopes": ["mine:x", "orders:*"]}
    assert abs(row(device).expires_at - later) < dt.timedelta(seconds=1)
    DatabaseAllowList().set_expiry([found.device_id], end)
    enroller.say(enroller.trust(device, expires_at=later))
    assert abs(row(device).expires_at - end) < dt.timedelta(seconds=1)
    # A person who pairs it takes it over.
    amesh_trust(device, permissions={"print": True})
    assert [why for _serial, why in enroller.say(enroller.trust(device)).refused] == ["known_here"]
    assert row(device).permissions == {"print": True}


@pytest.mark.parametrize(("end", "undo"), [("suspend", "lift"), ("revoke", "reinstate")])
def test_who_comes_back_has_the_rights_that_the_hub_names(
    enroller: TestHub, settings: Any, end: str, undo: str
) -> None:
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["orders:*"]}
    lifecycle.reset()
    device, unknown = EphemeralDevice("sensor"), EphemeralDevice("late")
    enroller.say(enroller.trust(device, scopes=("orders:read", "orders:write")))
    enroller.say(enroller.event(end, device))
    about = Trusted(device.identity.public_key, "sensor", {"shell": True})
    assert [why for _, why in enroller.say(enroller.event(undo, device, trusted=about)).refused] == ["may_not_grant"]
    assert status(device) == 401
    about = Trusted(device.identity.public_key, "renamed", scopes=("orders:read",))
    enroller.say(enroller.event(undo, device, trusted=about))
    assert status(device) == 200
    assert (row(device).friendly_name, row(device).permissions) == ("renamed", {"scopes": ["orders:read"]})
    about = Trusted(unknown.identity.public_key, "late")
    enroller.say(enroller.event(undo, unknown, trusted=about))
    assert status(unknown) == 200


def test_a_device_in_the_overlap_of_its_keys_is_not_the_hubs(
    enroller: TestHub, settings: Any, amesh_trust: Trust
) -> None:
    """Its old key is revoked from a time to come, and accepted until then."""
    settings.AMESH = {**settings.AMESH, "HUB_MAY_GRANT": ["print"]}
    lifecycle.reset()
    device = amesh_trust()
    moment = (timezone.now() + dt.timedelta(minutes=5)).replace(microsecond=0)

    def replace(pending: Change) -> None:
        found = pending.find(device_id=device.identity.device_id)
        assert found is not None
        pending.update(found, revoked_at=moment, revoked_by="am_newer", revoke_reason=ROTATED)

    current_list().change("rotation", replace)
    answer = enroller.say(enroller.trust(device, permissions={"print": True}))
    assert [why for _serial, why in answer.refused] == ["known_here"]
    assert row(device).permissions == {} and row(device).revoked_at == moment


def test_decisions_here_win_over_a_hub_that_adds(enroller: TestHub, settings: Any, amesh_trust: Trust) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}
    lifecycle.reset()
    people = DatabaseAllowList(by="person", approved=True)
    waiting, revoked = EphemeralDevice(), EphemeralDevice()
    people.add(revoked.entry())
    people.revoke(revoked.identity.device_id)
    answer = enroller.say(enroller.trust(waiting), enroller.trust(revoked))
    assert [why for _serial, why in answer.refused] == ["pending", "revoked_here"]
    assert row(waiting).state == "pending" and row(revoked).state == "revoked"
    people.deny([waiting.identity.device_id])
    assert [why for _serial, why in enroller.say(enroller.trust(waiting)).refused] == ["key_denied"]
    people.approve([waiting.identity.device_id])
    assert status(waiting) == 200
    enroller.say(enroller.event("revoke", waiting))
    assert [why for _s, why in enroller.say(enroller.trust(waiting)).refused] == ["pending"]
    assert row(waiting).state == "pending"


def test_a_hub_that_may_only_revoke_adds_nothing(hub: TestHub, amesh_trust: Trust) -> None:
    device, known = EphemeralDevice(), amesh_trust()
    answer = hub.say(hub.trust(device), hub.event("revoke", known))
    assert answer.refused == [(1, "permission_missing")] and answer.applied == 2
    assert not Device.objects.filter(device_id=device.identity.device_id).exists() and status(known) == 401


def test_another_hub_does_not_bring_back_what_a_hub_has_revoked(enroller: TestHub, amesh_server: LocalDevice) -> None:
    second, device = TestHub(amesh_server.identity.device_id).trusted("revoke"), EphemeralDevice()
    second.greet([device])
    assert [why for _serial, why in enroller.say(enroller.trust(device)).refused] == ["key_denied"]


def test_a_key_that_was_replaced_at_the_hub_is_valid_for_a_while(enroller: TestHub) -> None:
    old, new = EphemeralDevice(), EphemeralDevice()
    enroller.say(enroller.trust(old, 1))
    end = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)
    enroller.say(
        enroller.event("revoke", old, 2, effective_at=end, successor=new.identity.device_id), enroller.trust(new, 2)
    )
    assert status(old) == status(new) == 200
    found = row(old)
    assert (found.revoke_reason, found.revoked_by) == ("rotated", new.identity.device_id)
    enroller.say(enroller.event("revoke", new, 3))
    assert status(old) == status(new) == 401


@pytest.mark.parametrize("name", ["shell", "revoke", "enroll"])
def test_the_settings_let_no_hub_grant_what_no_hub_grants(settings: Any, name: str) -> None:
    settings.AMESH = {"HUB_MAY_GRANT": ["orders:read", name]}
    ((kind, text),) = conf.problems()
    assert kind == "value" and f"must not have {name}" in text


def test_without_time_zones(settings: Any, amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    settings.USE_TZ = False
    hub = TestHub(amesh_server.identity.device_id).trusted("revoke")
    hub.greet()
    device, unknown = amesh_trust(), EphemeralDevice()
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    hub.say(hub.event("suspend", device, until=until), hub.event("revoke", unknown))
    assert status(device) == 401 and row(device).state == "suspended"
    DatabaseAllowList().lift([device.identity.device_id])
    hub.epoch, hub.sent = "f" * 32, 0
    hub.greet({unknown: 1}, until=1, head=1)
    hub.say(hub.event("suspend", device, 2, at=dt.datetime(1, 1, 1, tzinfo=dt.UTC)))  # before the person lifted it
    assert status(device) == 200 and not DatabaseAllowList().verify().hubs


def test_a_device_that_comes_back_in_another_way_is_not_the_hubs(enroller: TestHub) -> None:
    device = EphemeralDevice()
    enroller.say(enroller.trust(device), enroller.event("revoke", device), enroller.event("reinstate", device))
    people = DatabaseAllowList(by="person")
    people.revoke(device.identity.device_id)
    people.purge(device.identity.device_id)
    assert come(make(), device).status_code == 201
    assert [why for _serial, why in enroller.say(enroller.trust(device)).refused] == ["known_here"]


def test_the_permission_is_looked_up_again_under_the_lock(hub: TestHub, amesh_trust: Trust) -> None:
    device = amesh_trust()
    found = next(one for one in current_list().snapshot().by_key.values() if one.device_id == hub.id)
    message = hub.message(hub.event("revoke", device))
    DatabaseAllowList().set_permissions(hub.id, {})
    with pytest.raises(PermissionMissing):  # the request was verified before that
        receiving.apply_message(message, found, now=time.time())
    DatabaseAllowList().set_permissions(hub.id, {"revoke": True})
    assert receiving.apply_message(message, found, now=time.time()).applied == 1 and status(device) == 401
