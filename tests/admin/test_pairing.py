"""Pairing in the admin, with ceremonies in threads of this process, a relay, and devices at its other end."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.db import connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Grant
from amesh_django.models import AuditEvent, Device, PairingSession
from amesh_django.pairing import sessions
from amesh_django.pairing.routing import websocket_urlpatterns
from amesh_django.trust import sealing
from authmesh.pairing import Pairing
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.pairing.errors import PairingError
from tests.admin.pairing_desk import MAY_PAIR, PAIR, Desk, Screen, no_thread_left, types_wrong
from tests.admin.people import break_seal, logged_in, staff, text_of
from tests.commands.pairing_terminals import Background
from tests.pairing.hostile_relay import ACK, error
from tests.relay.relay_world import asynchronous
from tests.support import databases, services

pytestmark = pytest.mark.slow

SCOPES = {"orders:read": "Read orders.", "orders:write": {"text": "Write orders.", "permission": "auth.add_group"}}


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with Background().running() as found:
        yield found


@pytest.fixture
def site(
    sqlite_database: dict[str, str], django_db_blocker: Any, amesh_server: object, settings: Any, background: Background
) -> Iterator[Any]:
    """A server with a database of its own, in which the threads of the ceremonies see what the pages write."""
    with django_db_blocker.unblock(), databases.as_default(sqlite_database):
        settings.AMESH = {**settings.AMESH, "RELAY_URL": background.relay.url, "SCOPES": SCOPES}
        DatabaseAllowList(by="operator").put_group("tills", ["orders:read"])
        with no_thread_left():
            yield settings
        background.relay.on_listen.clear()


@pytest.fixture
def root(site: Any, background: Background) -> Desk:
    return Desk(staff("root", is_superuser=True), background)


def change(settings: Any, **changes: Any) -> None:
    settings.AMESH = {**settings.AMESH, **changes}


def events() -> list[tuple[str, str, str]]:
    rows = AuditEvent.objects.exclude(kind="group").order_by("id")
    return [(row.kind, row.actor, row.reason_code) for row in rows]


def fails(paired: Any) -> PairingError:
    failure = paired.exception(30)
    assert isinstance(failure, PairingError)
    return failure


def id_of(other: Pairing) -> str:
    return other.device.identity.device_id


# --- it works --------------------------------------------------------------------------------------------------------


def test_the_device_gets_all_that_was_chosen_in_one_change(root: Desk, site: Any) -> None:
    robot = User.objects.create_user("robot")
    other = root.background.other("Anna’s till")
    given = {
        "permissions": ["shell"],
        "scopes": ["orders:write"],
        "groups": ["tills"],
        "user": "robot",
        "device_days": "30",
    }
    change(site, PERMISSIONS={"refund": "Pay back."})
    paired = root.pair(other, **given)
    (row,) = Device.objects.all()
    assert (row.device_id, row.friendly_name, row.role) == (id_of(other), "Anna’s till", "controller")
    assert row.permissions == {"shell": True, "scopes": ["orders:write"]}
    assert (list(row.groups), row.user, row.added_by) == (["tills"], robot, "handshake")
    assert row.expires_at is not None and dt.timedelta(29) < row.expires_at - timezone.now() <= dt.timedelta(30)
    assert paired.entry.role == "target"
    assert events() == [("pairing_begun", "root", ""), ("trust", "root", "")]
    assert DatabaseAllowList().verify().ok
    end = root.look()
    assert f"/admin/amesh/device/{row.pk}/change/" in end and root.state["over"]
    assert (root.row.code, root.row.answer, root.row.step) == ("", "", "done")


def test_what_the_page_shows_on_the_way(root: Desk) -> None:
    screen = Screen()
    root.begin()
    code = root.code()
    page = root.client.get(root.page)
    shown = text_of(page)
    assert f"amesh invite {code} --relay {root.background.relay.url}" in shown
    assert " ".join(code) in shown  # spoken digit by digit
    assert (
        'data-amesh-ends="' in page.content.decode() and '<noscript><meta http-equiv="refresh"' in page.content.decode()
    )
    assert page.content.decode().count("<h1") == 1 and "no-store" in page["Cache-Control"]
    other = root.background.other("till")
    paired = root.invite(other, screen)
    shown = root.look()
    assert id_of(other) in shown and "till" in shown and 'aria-current="step"' in shown and code not in shown
    assert root.row.answer == ""
    assert "six digits" in text_of(root.types("12 34")) and root.row.step == "code"
    typed = root.types(f" {screen.code.result(30)[:3]}-{screen.code.result(30)[3:]} ")
    assert typed.redirect_chain
    root.sees("Verified")
    assert screen.asked.wait(30) and not Device.objects.exists()
    screen.answered.set()
    paired.result(30)
    root.sees("Paired")


@pytest.mark.parametrize("address", ["", "state/"])
def test_pages_have_no_inline_style_or_script(root: Desk, address: str) -> None:
    root.begin()
    root.code()
    html = root.client.get(f"{root.page}{address}").content.decode()
    assert "<svg" in html
    assert not re.search(r"\sstyle=|\son\w+=|javascript:", html)
    assert not re.search(r"<script(?![^>]*\ssrc=)", html)


def test_the_state_is_sent_once(root: Desk) -> None:
    root.begin()
    root.code()
    first = root.client.get(f"{root.page}state/")
    again = root.client.get(f"{root.page}state/", headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", first["ETag"])
    root.press("cancel")
    root.sees("canceled")
    changed = root.client.get(f"{root.page}state/", headers={"If-None-Match": first["ETag"]})
    assert changed.status_code == 200 and changed["ETag"] != first["ETag"]


# --- it ends ---------------------------------------------------------------------------------------------------------


def test_three_wrong_codes_end_it(root: Desk) -> None:
    root.begin()
    codes = set()
    for number in (1, 2, 3):
        screen = Screen()
        paired = root.invite(root.background.other("till"), screen)
        codes.add(screen.code.result(30))
        types_wrong(root, screen)
        assert fails(paired).code == "peer_refused"
        root.sees(f"try {number + 1} of 3" if number < 3 else "Three verification codes were wrong")
    assert root.row.wrong == 2 and root.state["over"] and not Device.objects.exists()
    wrong_code = ("pairing_failed", "root", "wrong_verification_code")
    assert events() == [("pairing_begun", "root", ""), wrong_code] * 3
    assert "Start again" in root.look()


def test_a_code_after_a_wrong_one(root: Desk) -> None:
    root.begin()
    screen = Screen()
    paired = root.invite(root.background.other("till"), screen)
    types_wrong(root, screen)
    fails(paired)
    root.sees("try 2 of 3")
    screen = Screen()
    other = root.background.other("till")
    paired = root.invite(other, screen)
    root.types(screen.code.result(30))
    screen.answered.set()
    paired.result(30)
    root.sees("Paired")
    assert Device.objects.get().device_id == id_of(other)


@pytest.mark.parametrize("at", ["waiting", "code", "confirm"])
def test_cancel(root: Desk, at: str) -> None:
    screen = Screen()
    root.begin()
    code = root.code()
    paired = root.invite(root.background.other("till"), screen) if at != "waiting" else None
    if at == "confirm":
        root.types(screen.code.result(30))
        root.sees("Verified")
        assert screen.asked.wait(30)
    root.press("cancel")
    screen.answered.set()
    root.sees("The pairing was canceled. Nothing was stored.")
    assert paired is None or fails(paired).code in ("peer_disconnected", "not_confirmed")
    assert not Device.objects.exists() and root.row.step == "canceled"
    assert events() == [("pairing_begun", "root", ""), ("pairing_failed", "root", "canceled")]
    assert code not in root.look() and "ended already" in text_of(root.press("cancel"))


def test_nobody_looks_at_the_page(root: Desk) -> None:
    root.begin()
    root.code()
    long_ago = timezone.now() - dt.timedelta(seconds=sessions.ABANDONED_SECONDS + 1)
    PairingSession.objects.update(seen_at=long_ago)
    services.until(lambda: root.row.step == "failed")
    assert "Nobody looked at the page" in root.look()
    assert events()[-1] == ("pairing_failed", "root", "abandoned")


def test_a_page_that_is_looked_at_keeps_it_alive(root: Desk) -> None:
    root.begin()
    root.code()
    PairingSession.objects.update(seen_at=timezone.now() - dt.timedelta(seconds=sessions.ABANDONED_SECONDS - 10))
    root.look()
    assert timezone.now() - root.row.seen_at < dt.timedelta(seconds=10)


def test_nobody_came_and_start_again_with_the_same_choice(root: Desk) -> None:
    root.background.relay.on_listen.append([ACK, error("otc_not_found")])
    root.begin(scopes=["orders:read"], groups=["tills"])
    assert "use the new code on the device within a minute" in root.sees("No device was added")
    before = root.page
    again = root.press("again")
    root.page = again.redirect_chain[-1][0]
    assert root.page != before
    root.code()
    assert '"orders:read"' in root.row.chosen_json and '"tills"' in root.row.chosen_json


def test_the_device_leaves(root: Desk) -> None:
    root.begin()
    screen = Screen()
    paired = root.invite(root.background.other("till"), screen)
    paired.cancel()
    assert "The other device has left" in root.sees("No device was added")


def test_the_device_says_no(root: Desk) -> None:
    root.begin()
    screen = Screen(says=False)
    paired = root.invite(root.background.other("till"), screen)
    root.types(screen.code.result(30))
    screen.answered.set()
    assert fails(paired) is not None
    root.sees("Nothing was stored here")
    assert not Device.objects.exists()


def test_the_relay_is_down(root: Desk, site: Any) -> None:
    change(site, RELAY_URL=f"ws://127.0.0.1:{services.free_port()}/ws")
    root.begin()
    shown = root.sees("No device was added")
    assert "cannot be reached" in shown and "RELAY_URL" in shown and "--relay" not in shown
    assert events()[-1] == ("pairing_failed", "root", "relay_unreachable")


def test_the_process_is_gone(root: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amesh_django.pairing.hosting.start_here", lambda pk: None)
    root.begin()
    assert "Connecting to the relay" in root.look()
    row = root.row
    long_ago = sessions.now() - dt.timedelta(seconds=sessions.LOST_SECONDS + 1)
    sessions.claim(row.pk, "host")
    assert sessions.claim(row.pk, "another") is None
    PairingSession.objects.update(alive_at=long_ago)
    assert "was restarted" in root.look() and root.state["over"]
    assert not sessions.under_way()
    row = root.row  # that process was only held up: it must not go on
    with pytest.raises(PairingError) as held_up:
        sessions.exchange(row, {})
    assert held_up.value.code == "lost"


def test_no_worker_begins_it(root: Desk, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(site, PAIRING_TASK=True)
    sent: list[int] = []
    monkeypatch.setattr("amesh_django.pairing.hosting._sender", sent.append)
    root.begin()
    assert sent == [root.row.pk]
    row = root.row
    assert sessions.ended(row) is None
    later = sessions.now() + dt.timedelta(seconds=sessions.LOST_SECONDS + 1)
    ended = sessions.ended(row, later)
    assert ended is not None and ended.code == "not_taken"
    monkeypatch.setattr(sessions, "now", lambda: later)
    assert sessions.claim(row.pk, "late") is None
    monkeypatch.setattr(sessions, "now", sealing.now)
    monkeypatch.setattr("amesh_django.pairing.hosting._sender", sent.append)

    def broken(pk: int) -> None:
        raise OSError("no broker")

    monkeypatch.setattr("amesh_django.pairing.hosting._sender", broken)
    root.begin()
    assert "a worker of Celery" in root.look() and root.row.step == "failed"


# --- someone who can write to the database ----------------------------------------------------------------------------


def test_an_answer_that_no_person_gave(root: Desk) -> None:
    root.begin()
    screen = Screen()
    paired = root.invite(root.background.other("evil"), screen)
    row, code = root.row, screen.code.result(30)
    genuine = sessions.signed_answer(row, code)
    row.device_id = "am_another"
    for_another = sessions.signed_answer(row, code)
    assert genuine != for_another
    PairingSession.objects.update(answer=for_another)
    services.until(lambda: root.row.step == "failed")
    assert "changed outside Django" in root.look()
    screen.answered.set()
    fails(paired)
    assert not Device.objects.exists()


@pytest.mark.parametrize(
    ("column", "value"), [("chosen_json", '{"permissions": ["shell"]}'), ("name", "Anna’s till"), ("by", "anna")]
)
def test_a_row_that_was_changed(root: Desk, column: str, value: str) -> None:
    root.begin()
    screen = Screen()
    paired = root.invite(root.background.other("evil"), screen)
    PairingSession.objects.update(**{column: value})
    assert root.client.get(f"{root.page}state/").status_code == 404
    assert root.client.get(root.page).status_code == 404
    assert root.types(screen.code.result(30)).status_code == 404
    PairingSession.objects.update(mac="0" * 64)
    screen.answered.set()
    fails(paired)
    services.until(lambda: events()[-1] == ("pairing_failed", "root", "changed_outside"))
    assert not Device.objects.exists()


# --- people ----------------------------------------------------------------------------------------------------------


def test_two_people_pair_at_once(root: Desk, background: Background) -> None:
    anna = Desk(staff("anna", *MAY_PAIR), background)
    root.begin()
    anna.begin()
    code = root.code()
    anna.code()
    shown = text_of(anna.client.get(PAIR))
    assert "A pairing of root" in shown and "Your pairing: continue" in shown and code not in shown
    page = anna.client.get(root.page)
    assert "begun by root" in text_of(page) and code not in page.content.decode()
    assert anna.client.get(f"{root.page}state/").status_code == 404
    for what in ("cancel", "answer", "again"):
        anna.client.post(f"{root.page}{what}/", {"code": "123456", "device": ""})
    assert not root.row.is_canceled and root.row.answer == "" and PairingSession.objects.count() == 2
    for desk in (root, anna):
        screen = Screen()
        paired = desk.invite(desk.background.other(f"device of {desk.user}"), screen)
        desk.types(screen.code.result(30))
        screen.answered.set()
        paired.result(30)
        desk.sees("Paired")
    assert sorted(Device.objects.values_list("friendly_name", flat=True)) == ["device of anna", "device of root"]
    assert {actor for kind, actor, _ in events() if kind == "trust"} == {"anna", "root"}


def test_log_out_and_in_again(root: Desk, background: Background) -> None:
    anna = Desk(staff("anna", *MAY_PAIR), background)
    anna.begin()
    screen = Screen()
    paired = anna.invite(background.other("till"), screen)
    anna.client.logout()
    assert anna.client.get(f"{anna.page}state/").status_code == 302
    assert anna.client.get(anna.page)["Location"] == f"/admin/login/?next={anna.page}"
    anna.client = logged_in(anna.user)
    assert "Verification code" in text_of(anna.client.get(anna.page))
    anna.types(screen.code.result(30))
    screen.answered.set()
    paired.result(30)
    anna.sees("Paired")


@pytest.mark.parametrize(
    "permissions", [("view_device",), ("pair_device",), ("view_device", "enroll_device", "grant_device")]
)
def test_other_permissions_are_not_enough(root: Desk, background: Background, permissions: tuple[str, ...]) -> None:
    root.begin()
    client = logged_in(staff("eve", *permissions))
    for method, page in (("get", PAIR), ("post", PAIR), ("get", root.page), ("get", f"{root.page}state/")):
        assert getattr(client, method)(page).status_code == 403, page
    for what in ("answer", "cancel", "again"):
        assert client.post(f"{root.page}{what}/").status_code == 403
    assert PAIR not in client.get("/admin/").content.decode()
    assert not root.row.is_canceled and PairingSession.objects.count() == 1


def test_forms_need_a_csrf_token(root: Desk) -> None:
    root.begin()
    client = Client(enforce_csrf_checks=True)
    client.force_login(root.user)
    for address in (PAIR, f"{root.page}answer/", f"{root.page}cancel/", f"{root.page}again/"):
        assert client.post(address).status_code == 403
    assert not root.row.is_canceled


def test_what_a_person_may_not_give(root: Desk, background: Background) -> None:
    client = logged_in(staff("anna", *MAY_PAIR))
    shown = client.get(PAIR).content.decode()
    assert "orders:read" in shown and "orders:write" not in shown
    assert 'name="permissions"' not in shown and 'name="user"' not in shown
    forced = client.post(PAIR, {"scopes": ["orders:write"]})
    assert forced.status_code == 200 and not PairingSession.objects.exists()
    ignored = client.post(PAIR, {"permissions": "shell", "user": "root"})  # there are no such fields
    assert ignored.status_code == 302 and "shell" not in PairingSession.objects.get().chosen_json


def test_a_right_that_was_lost_meanwhile(root: Desk, background: Background) -> None:
    anna = Desk(staff("anna", *MAY_PAIR, "auth.add_group"), background)
    anna.begin(scopes=["orders:write"])
    screen = Screen()
    paired = anna.invite(background.other("till"), screen)
    anna.user.user_permissions.remove(anna.user.user_permissions.get(codename="add_group"))
    assert "You may no longer give" in text_of(anna.types(screen.code.result(30)))
    screen.answered.set()
    fails(paired)
    assert not Device.objects.exists()


def test_a_person_has_only_so_many_under_way(root: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amesh_django.pairing.hosting.start_here", lambda pk: None)
    PairingSession.objects.create(
        token="old", owner="1", by="x", begun_at=timezone.now() - dt.timedelta(days=2), seen_at=timezone.now(), mac=""
    )
    for _ in range(sessions.MAX_OPEN):
        root.begin()
    assert "as many pairings under way" in text_of(root.client.post(PAIR))
    assert PairingSession.objects.count() == sessions.MAX_OPEN  # and the old one is gone


# --- devices that are known -------------------------------------------------------------------------------------------


def known(other: Pairing, **changes: Any) -> Device:
    """Put a device into the list."""
    identity = other.device.identity
    entry = DeviceEntry.new(
        identity.public_key, "old name", CONTROLLER, added_at=timezone.now(), permissions={"shell": True}
    )
    DatabaseAllowList(by="operator").add(entry)
    return Device.objects.get(device_id=identity.device_id)


def test_a_known_device_gets_what_was_chosen_in_place_of_what_it_had(root: Desk) -> None:
    other, robot = root.background.other("new name"), User.objects.create_user("robot")
    row = known(other)
    trusted = DatabaseAllowList(by="operator")
    trusted.map_user(row.device_id, robot)
    trusted.suspend([row.device_id], reason="lost")
    root.begin(scopes=["orders:read"])
    screen = Screen()
    paired = root.invite(other, screen)
    shown = root.look()
    assert "in the list already" in shown and "acts as robot" in shown and "Suspended" in shown
    root.types(screen.code.result(30))
    screen.answered.set()
    paired.result(30)
    root.sees("Paired")
    row.refresh_from_db()
    assert (row.friendly_name, row.permissions) == ("new name", {"scopes": ["orders:read"]})
    assert row.suspended_at is not None and row.user == robot


def test_a_device_that_acts_as_another_user(root: Desk) -> None:
    other = root.background.other("till")
    row = known(other)
    robot, boss = User.objects.create_user("robot"), User.objects.create_user("boss")
    DatabaseAllowList(by="operator").map_user(row.device_id, robot)
    root.begin(user=boss.username)
    screen = Screen()
    paired = root.invite(other, screen)
    root.types(screen.code.result(30))
    screen.answered.set()
    fails(paired)
    root.sees("acts as another user already")
    row.refresh_from_db()
    assert row.user == robot and row.permissions == {"shell": True}


def test_a_denied_device(root: Desk, site: Any) -> None:
    change(site, REQUIRE_APPROVAL=True)
    other = root.background.other("till")
    row = known(other)
    DatabaseAllowList(by="operator").deny([row.device_id], reason="stranger")
    root.begin()
    paired = root.background.submit(other.invite(root.code(), Screen()))
    shown = root.sees("was denied")
    assert 'name="code"' not in shown and "stranger" in shown
    root.press("cancel")
    fails(paired)


def test_a_device_that_was_revoked_and_waits_for_approval(root: Desk, site: Any, background: Background) -> None:
    other = background.other("till")
    row = known(other)
    DatabaseAllowList(by="operator").revoke(row.device_id, reason="lost")
    change(site, REQUIRE_APPROVAL=True)
    anna = Desk(staff("anna", *MAY_PAIR), background)
    anna.begin()
    screen = Screen()
    paired = anna.invite(other, screen)
    assert "was revoked" in anna.look()
    anna.types(screen.code.result(30))
    screen.answered.set()
    paired.result(30)
    assert "waits for approval" in anna.sees("Paired")
    row.refresh_from_db()
    assert row.revoked_at is None and row.pending_since is not None


@pytest.mark.parametrize("replaces", [True, False])
def test_a_list_that_is_full(root: Desk, site: Any, replaces: bool) -> None:
    first = known(root.background.other("first"))
    change(site, MAX_CONTROLLERS=1)
    assert first.device_id in root.client.get(PAIR).content.decode()
    other, screen = root.background.other("second"), Screen()
    root.begin(replaces=first.device_id if replaces else "")
    paired = root.invite(other, screen)
    root.types(screen.code.result(30))
    screen.answered.set()
    if replaces:
        paired.result(30)
        root.sees("Paired")
    else:
        fails(paired)
        assert "MAX_CONTROLLERS" in root.sees("No device was added")
    first.refresh_from_db()
    assert (first.revoked_at is not None) == replaces == Device.objects.filter(device_id=id_of(other)).exists()


def test_a_group_that_was_removed_meanwhile(root: Desk) -> None:
    root.begin(groups=["tills"])
    screen = Screen()
    paired = root.invite(root.background.other("till"), screen)
    row = root.row
    assert sessions.answer(row, screen.code.result(30))  # the page would refuse it from now on
    root.sees("Verified")
    DatabaseAllowList(by="operator").remove_group("tills")
    screen.answered.set()
    fails(paired)
    root.sees("There is no group")
    assert not Device.objects.exists()


@pytest.mark.parametrize("what", ["revoke", "suspend"])
def test_what_was_decided_while_it_ran_is_not_undone(root: Desk, what: str) -> None:
    """The code was typed, and the device has not answered yet."""
    other = root.background.other("till")
    row, people = known(other), DatabaseAllowList(by="bob")
    root.begin()
    screen = Screen()
    paired = root.invite(other, screen)
    root.types(screen.code.result(30))
    root.sees("Verified")
    people.revoke(row.device_id, reason="stolen") if what == "revoke" else people.suspend(
        [row.device_id], reason="stolen"
    )
    screen.answered.set()
    fails(paired)
    root.sees("was changed while the pairing ran")
    row.refresh_from_db()
    assert "stolen" in (row.revoke_reason, row.suspend_reason) and row.state != "active"


def test_an_expiry_stays_and_the_last_page_says_so(root: Desk) -> None:
    other = root.background.other("till")
    row = known(other)
    DatabaseAllowList(by="bob").grant([row.device_id], Grant(), expires_at=timezone.now() + dt.timedelta(seconds=1))
    services.until(lambda: Device.objects.get(pk=row.pk).state == "expired", 30)
    root.pair(other, device_days="300")
    shown = root.look()
    assert "Its requests are rejected now." in shown and "accepted from now on" not in shown
    assert Device.objects.get(pk=row.pk).state == "expired"


def test_a_broken_seal(root: Desk) -> None:
    row = known(root.background.other("till"))
    break_seal(row)
    page = root.client.get(PAIR)
    assert "No device can be paired now" in text_of(page) and "amesh-banner" in page.content.decode()
    assert "No device can be paired now" in text_of(root.client.post(PAIR)) and not PairingSession.objects.exists()


def test_the_number_of_queries(root: Desk, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any) -> None:
    monkeypatch.setattr("amesh_django.pairing.hosting.start_here", lambda pk: None)
    root.begin()
    tag = root.client.get(f"{root.page}state/")["ETag"]
    with django_assert_num_queries(3):  # the session, the person, and the row
        assert root.client.get(f"{root.page}state/", headers={"If-None-Match": tag}).status_code == 304

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert root.client.get(PAIR).status_code == 200
        return len(queries)

    before = count()
    for number in range(3):
        known(root.background.other(f"till {number}"))
        Desk(root.user, root.background).begin()
    assert count() == before < 15


# --- the WebSocket ---------------------------------------------------------------------------------------------------


def connected(desk: Desk, origin: str = "http://testserver", **changes: str) -> WebsocketCommunicator:
    """Return a connection of the browser of a person, which is not open yet."""
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in desk.client.cookies.items())
    headers = {"host": "testserver", "origin": origin, "cookie": cookies, **changes}
    raw = [(name.encode(), value.encode()) for name, value in headers.items() if value]
    return WebsocketCommunicator(URLRouter(websocket_urlpatterns), f"{desk.page}live", headers=raw)


def forget_connection() -> None:
    """Close the connection of this thread, which may be that to the database of another test."""
    connection.close()
    del connections["default"]


@asynchronous
async def says(found: WebsocketCommunicator, then: Callable[[], object]) -> None:
    await database_sync_to_async(forget_connection)()
    accepted, _ = await found.connect(30)
    assert accepted
    await asyncio.sleep(0.5)
    await asyncio.to_thread(then)
    assert await found.receive_from(30) == "changed"
    while (message := await found.receive_output(30))["type"] != "websocket.close":
        assert message["text"] == "changed"
    assert message["code"] == 1000
    await database_sync_to_async(forget_connection)()


@asynchronous
async def is_refused(found: WebsocketCommunicator) -> None:
    await database_sync_to_async(forget_connection)()
    accepted, code = await found.connect(30)
    assert (accepted, code) == (False, 1008)
    await database_sync_to_async(forget_connection)()


def test_the_websocket_says_that_something_has_changed(root: Desk) -> None:
    root.begin()
    root.code()
    says(connected(root), lambda: sessions.cancel(root.row))


def test_the_websocket_is_for_that_person_on_a_page_of_that_host(root: Desk, background: Background) -> None:
    root.begin()
    root.code()
    for origin in ("http://evil.example", "http://testserver.evil.example", "null", ""):
        is_refused(connected(root, origin))
    is_refused(connected(root, cookie=""))
    eve = Desk(staff("eve", *MAY_PAIR), background)
    eve.page = root.page
    is_refused(connected(eve))
    root.page = f"{PAIR}{'x' * 43}/"
    is_refused(connected(root))
