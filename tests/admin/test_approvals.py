"""The queue of devices that wait: what it shows, approving and denying, who came first, who may do it, and what it costs."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.approvals.waiting import queue, waiting
from amesh_django.decisions import Grant
from amesh_django.models import AuditEvent, Device
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.chain import Actor
from tests.admin.people import LIST, break_seal, logged_in, page_of, staff, text_of
from tests.enrollment import machines

QUEUE = f"{LIST}approvals/"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _approval(amesh_server: Any, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True, "URL": machines.URL, "MAX_CONTROLLERS": 2000}
    lifecycle.reset()


def wait(*names: str, by: Actor | str = "alice") -> list[str]:
    """Add devices that wait, and return their device IDs."""
    made = [EphemeralDevice(name) for name in names]
    DatabaseAllowList(by=by).add_all([one.entry() for one in made])
    return [one.identity.device_id for one in made]


def decide(client: Client, decision: str, *ids: str, **given: Any) -> Any:
    return client.post(QUEUE, {"decision": decision, "device": ids, **given}, follow=True)


def states() -> dict[str, str]:
    return {device.device_id: device.state for device in Device.objects.all()}


def test_the_queue_says_who_waits_and_how_each_came(root: Client, django_capture_on_commit_callbacks: Any) -> None:
    machine = EphemeralDevice("sensor-17")
    with django_capture_on_commit_callbacks(execute=True):
        machines.come(
            machines.make(),
            machine,
        )
    wait("\u202e<b>evil</b>", by=Actor("anna", "user"))
    shown, html = text_of(root.get(QUEUE)), root.get(QUEUE).content.decode()
    assert "2 devices wait" in shown and shown.index("sensor-17") < shown.index("evil")
    assert machine.identity.device_id in shown and "with the enrollment token" in shown and "(sensors)" in shown
    assert "127.0.0.1" in shown and "by anna" in shown
    assert "<b>evil" not in html and "\u202e" not in html
    AuditEvent.objects.filter(kind="trust").update(actor="mallory")  # outside amesh
    assert "mallory" not in text_of(root.get(QUEUE)) and "not known" in text_of(root.get(QUEUE))


def test_approve_and_deny_with_a_note(root: Client) -> None:
    first, second, third = wait("first", "second", "third")
    shown = text_of(decide(root, "approve", first, second, note="checked at the desk"))
    assert f"Approved: first ({first}), second ({second})" in shown and "1 device waits" in shown
    assert f"Denied: third ({third})" in text_of(decide(root, "deny", third, note="not ours"))
    assert states() == {first: "active", second: "active", third: "denied"}
    rows = {row.device_id: row for row in Device.objects.all()}
    assert rows[first].note == "checked at the desk" and rows[third].deny_reason == "not ours"
    assert (rows[third].denied_by, rows[first].revision) == ("root", rows[second].revision)  # one change of many
    assert AuditEvent.objects.filter(kind="approve", actor="root", actor_type="user").count() == 2
    assert LogEntry.objects.filter(change_message__contains="checked at the desk").count() == 2
    assert "No device waits" in text_of(root.get(QUEUE))
    DatabaseAllowList(by="test").devices()  # the seal holds


def test_all_of_a_page_without_scripts(root: Client) -> None:
    ids = wait(*(f"d{number}" for number in range(3)))
    page = root.get(QUEUE)
    decide(root, "approve", all="1", listed=page.context["listed"])
    assert set(states().values()) == {"active"} and len(ids) == 3


def test_who_came_first(root: Client) -> None:
    approved, denied, revoked, waits = wait("A", "B", "C", "D")
    anna = DatabaseAllowList(by=Actor("anna", "user"))
    anna.approve([approved])
    anna.deny([denied], reason="not ours")
    anna.revoke(revoked, reason="sold")
    before = list(Device.objects.exclude(device_id=waits).order_by("pk").values())
    shown = text_of(decide(root, "approve", approved, denied, revoked, waits, "am_gone"))
    assert f"Approved: D ({waits})" in shown
    assert f"A ({approved}) was already approved by anna" in shown
    assert f"B ({denied}): Denied" in shown and "by anna: not ours" in shown  # and is not accepted
    assert f"C ({revoked}): Revoked" in shown and "not in the list any more" in shown
    assert "already approved by anna" in text_of(decide(root, "deny", approved, denied, revoked, note="no"))
    assert list(Device.objects.exclude(device_id=waits).order_by("pk").values()) == before


@pytest.mark.parametrize("given", [{}, {"device": []}, {"device": ["x"], "decision": "reinstate"}])
def test_nothing_to_decide(root: Client, given: dict[str, Any]) -> None:
    (name,) = wait("a")
    assert "Select at least one" in text_of(root.post(QUEUE, given, follow=True))
    too_many = [f"am_{number}" for number in range(101)]
    assert "at most 100" in text_of(decide(root, "approve", name, *too_many))
    assert states() == {name: "pending"}


@pytest.mark.parametrize(
    ("permissions", "is_allowed"),
    [
        ((), False),
        (("approve_device",), False),
        (("view_device",), False),
        (("view_device", "approve_device"), True),
        (
            (
                "view_device", "change_device", "revoke_device", "suspend_device", "reinstate_device", "grant_device",
                "enroll_device", "pair_device", "manage_server", "view_auditevent",
            ),
            False,
        ),
    ],
)  # fmt: skip
def test_permissions(permissions: tuple[str, ...], is_allowed: bool) -> None:
    (name,) = wait("a")
    client = logged_in(staff("clerk", *permissions))
    assert client.get(QUEUE).status_code == (200 if is_allowed else 403)
    badge = "1 device waits for approval" in text_of(client.get("/admin/"))
    assert badge == is_allowed
    if "view_device" in permissions:
        assert ("Approvals (1)" in text_of(client.get(LIST))) == is_allowed
    assert decide(client, "approve", name).status_code == (200 if is_allowed else 403)
    assert states() == {name: "active" if is_allowed else "pending"}
    assert Client(enforce_csrf_checks=True).post(QUEUE, {"decision": "approve"}).status_code in (302, 403)


def test_a_broken_seal_shows_the_queue_and_offers_nothing(root: Client) -> None:
    first, second = wait("a", "b")
    break_seal(Device.objects.get(device_id=first))
    shown = text_of(root.get(QUEUE))
    assert second in shown and "No device can be approved or denied now" in shown and "does not match its seal" in shown
    assert 'name="decision"' not in root.get(QUEUE).content.decode()
    assert "The change was rejected" in text_of(decide(root, "approve", second))
    assert Device.objects.get(device_id=second).pending_since is not None


def test_waiting_is_what_the_verified_list_says(root: Client) -> None:
    names = [f"d{number}" for number in range(8)]
    ids = dict(zip(names, wait(*names), strict=True))
    people, soon = DatabaseAllowList(by="alice"), timezone.now() + dt.timedelta(hours=1)
    people.approve([ids["d0"]])
    people.deny([ids["d1"]])
    people.suspend([ids["d2"]])
    people.suspend([ids["d3"]], until=soon)
    people.revoke(ids["d4"])
    people.grant([ids["d5"]], Grant(), expires_at=soon)
    for seconds in (0, 7200):
        now = timezone.now() + dt.timedelta(seconds=seconds)
        known = current_list().snapshot().by_key.values()
        expected = {one.device_id for one in known if one.state(time.time() + seconds) == "pending"}
        assert {row.device_id for row in queue(now)} == expected and waiting(now) == len(expected)
    with connection.cursor() as cursor, CaptureQueriesContext(connection) as queries:
        waiting()
        cursor.execute(f"EXPLAIN QUERY PLAN {queries[0]['sql']}")
        assert connection.vendor != "sqlite" or "amesh_waiting" in str(cursor.fetchall())


def test_a_thousand_who_wait_cost_as_much_as_one(root: Client) -> None:
    counts = []
    for more in (1, 999):
        first = DatabaseAllowList(by=Actor("anna", "user"))
        first.add_all([EphemeralDevice(f"d{number}").entry() for number in range(more)])
        root.get(QUEUE)
        with CaptureQueriesContext(connection) as queries:
            page = root.get(QUEUE)
        counts.append(len(queries))
    assert counts[0] == counts[1]
    assert "1000 devices wait" in text_of(page) and "Page 1 of 10" in text_of(page)
    assert len(root.get(f"{QUEUE}?p=10").context["rows"]) == 100
    assert page_of(Device.objects.order_by("pk")[0]) in page.content.decode()
