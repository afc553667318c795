"""What people decide about devices in the admin: each verb has a page, a permission, and the states that it fits."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.admin.devices.forms import VerbForm
from amesh_django.admin.devices.revoking import MAX_DEVICES
from amesh_django.admin.devices.verbs import VERBS
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from amesh_django.trust import current_list
from tests.admin.people import LIST, Trust, break_seal, logged_in, page_of, staff, text_of

NOW = timezone.now().replace(microsecond=0)
EARLIER, LATER = NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=1)


def local(moment: dt.datetime) -> str:
    """Return a time as a browser sends it: by the clock that the page names."""
    return timezone.localtime(moment).strftime("%Y-%m-%dT%H:%M:%S")


WAITS = {"pending_since": EARLIER}
#: Columns of a device in each state.
STATES: dict[str, dict[str, Any]] = {
    "active": {},
    "pending": WAITS,
    "expired": {"expires_at": EARLIER},
    "suspended": {"suspended_at": EARLIER, "suspended_by": "bob"},
    "waits and is suspended": {**WAITS, "suspended_at": EARLIER},
    "denied": {**WAITS, "denied_at": EARLIER},
    "revoked": {"revoked_at": EARLIER, "revoked_by": "bob"},
    "was replaced": {"revoked_at": LATER, "revoked_by": "am_new", "revoke_reason": "rotated"},
    "asked": {"rotation_requested_at": EARLIER},
}
LISTED = {*STATES} - {"revoked", "was replaced"}
CALLING = LISTED - {"denied"}
#: For each verb: the states that it fits, the fields of its form, and columns that it sets.
CASES: dict[str, tuple[set[str], dict[str, Any], dict[str, Any]]] = {
    "approve": ({"pending", "waits and is suspended", "denied"}, {}, {"pending_since": None, "denied_at": None}),
    "deny": ({"pending", "waits and is suspended"}, {"reason": "not ours"}, {"deny_reason": "not ours"}),
    "suspend": (CALLING, {"end": "0", "reason": "audit"}, {"suspend_reason": "audit", "suspended_until": None}),
    "lift": ({"suspended", "waits and is suspended"}, {}, {"suspended_at": None}),
    "reinstate": ({"revoked"}, {"device_id": "…"}, {"revoked_at": None}),
    "grant": (CALLING, {"scopes": "orders:read"}, {"permissions": {"scopes": ["orders:read"]}}),
    "expire": (CALLING, {"expires_at": local(LATER)}, {"expires_at": LATER}),
    "rename": (LISTED, {"name": "till 4"}, {"friendly_name": "till 4"}),
    "note": ({*STATES}, {"note": "by the door"}, {"note": "by the door"}),
    "ask-rotation": (CALLING - {"asked"}, {}, {}),
    "keep-key": ({"asked"}, {}, {"rotation_requested_at": None}),
}


def in_state(trust: Trust, state: str, **options: Any) -> Device:
    device = trust(state, **options)
    columns = STATES[state]
    if columns:
        current_list().change("x", lambda pending: pending.update(pending.find(pk=device.pk), **columns))
    return fresh(device)


def fresh(device: Device) -> Device:
    return Device.objects.get(pk=device.pk)


def url_of(verb: str, *devices: Device) -> str:
    return f"{reverse(f'admin:amesh_device_{verb}')}?devices={','.join(device.device_id for device in devices)}"


def send(client: Client, verb: str, *devices: Device, **data: Any) -> Any:
    filled = {
        "devices": ",".join(device.device_id for device in devices),
        "amesh_revision": str(max(device.revision for device in devices)),
        **CASES[verb][1],
        **data,
    }
    if filled.get("device_id") == "…":
        filled["device_id"] = devices[0].device_id
    return client.post(url_of(verb), filled)


def test_the_table_of_tests_has_every_verb() -> None:
    assert CASES.keys() == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_needs_its_permission_and_no_other_one(trust: Trust, name: str) -> None:
    verb = VERBS[name]
    states, _data, columns = CASES[name]
    device = in_state(trust, sorted(states)[0])
    every = {one.permission for one in VERBS.values()} | {"revoke_device", "enroll_device", "pair_device"}
    other = logged_in(staff("other", "view_device", *(every - {verb.permission})))
    blind = logged_in(staff("blind", verb.permission))
    for client in (other, *([] if verb.permission == "change_device" else [blind])):
        assert client.get(url_of(name, device)).status_code == send(client, name, device).status_code == 403
    assert verb.label not in [one["label"] for one in offered(other, device)]
    assert fresh(device).revision == device.revision
    alone = logged_in(staff("alone", "view_device", verb.permission))
    assert name in [one["verb"] for one in offered(alone, device)]
    page = alone.get(url_of(name, device))
    assert page.status_code == 200 and device.device_id in text_of(page) and str(verb.effect) in text_of(page)
    answer = send(alone, name, device)
    assert (answer.status_code, answer.headers["Location"]) == (302, page_of(device))
    changed = fresh(device)
    assert changed.revision > device.revision
    assert {column: getattr(changed, column) for column in columns} == columns
    event = AuditEvent.objects.filter(device_id=device.device_id).first()
    assert event is not None and (event.actor, event.actor_type) == ("alone", "user")
    entry = LogEntry.objects.get(object_id=str(device.pk))
    assert entry.user.username == "alone" and device.device_id in entry.change_message
    assert DatabaseAllowList().verify().ok


def offered(client: Client, device: Device) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(page_of(device)).context["amesh_verbs"]
    return found


@pytest.mark.parametrize("state", STATES)
def test_a_page_offers_what_fits_the_state_and_the_rest_is_refused(trust: Trust, root: Client, state: str) -> None:
    device = in_state(trust, state)
    fitting = {name for name, (states, _data, _columns) in CASES.items() if state in states}
    assert {one["verb"] for one in offered(root, device)} == fitting
    for name in CASES.keys() - fitting:
        for answer in (root.get(url_of(name, device)), send(root, name, device)):
            assert answer.headers["Location"] == page_of(device)
        assert "does not fit the present state" in text_of(root.get(page_of(device)))
    assert fresh(device).revision == device.revision


def test_a_target_makes_no_requests(trust: Trust, root: Client) -> None:
    assert {one["verb"] for one in offered(root, trust("target", role="target"))} == {"rename", "note"}


def test_nothing_is_offered_and_nothing_done_while_the_seal_is_broken(trust: Trust, root: Client) -> None:
    device, other = in_state(trust, "suspended"), trust("other")
    break_seal(other)
    page = root.get(page_of(device))
    assert page.context["amesh_verbs"] == [] and "Revoke…" in text_of(page)
    for name in ("lift", "suspend", "grant", "note"):
        for answer in (root.get(url_of(name, device)), send(root, name, device)):
            assert answer.headers["Location"] == page_of(device)
        assert "The change was rejected" in text_of(root.get(page_of(device)))
    assert fresh(device).revision == device.revision


@pytest.mark.parametrize("name", ["suspend", "grant", "reinstate", "rename"])
def test_a_page_that_is_out_of_date_changes_nothing(trust: Trust, root: Client, name: str) -> None:
    device = in_state(trust, sorted(CASES[name][0])[0])
    DatabaseAllowList(by="bob").set_note(device.device_id, "meanwhile")
    page = send(root, name, device)
    assert page.status_code == 200 and "was changed while this page was open" in text_of(page)
    assert fresh(device).revision == device.revision + 1
    # The page shows the present state, so that it can be sent again.
    again = {"amesh_revision": page.context["form"].revision}
    assert send(root, name, device, **again).status_code == 302


def test_a_device_that_is_revoked_at_the_same_moment(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, is_valid = trust(), VerbForm.is_valid

    def revoke_first(form: VerbForm) -> bool:
        done = is_valid(form)
        DatabaseAllowList(by="bob").revoke(device.device_id, reason="stolen")
        return done

    monkeypatch.setattr(VerbForm, "is_valid", revoke_first)
    assert send(root, "suspend", device).status_code == 302
    assert "not" in text_of(root.get(page_of(device)))
    assert (fresh(device).suspended_at, fresh(device).revoke_reason) == (None, "stolen")


def test_a_device_that_is_denied_at_the_same_moment_stays_denied(
    trust: Trust, root: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True}
    lifecycle.reset()
    device, is_valid = trust(), VerbForm.is_valid

    def deny_first(form: VerbForm) -> bool:
        done = is_valid(form)
        DatabaseAllowList(by="bob").deny([device.device_id], reason="not ours")
        return done

    monkeypatch.setattr(VerbForm, "is_valid", deny_first)
    send(root, "approve", device)
    assert fresh(device).deny_reason == "not ours"


@pytest.mark.parametrize(("end", "seconds"), [("3600", 3600), ("86400", 86400)])
def test_suspend_for_a_time(trust: Trust, root: Client, end: str, seconds: int) -> None:
    device = trust()
    send(root, "suspend", device, end=end)
    until = fresh(device).suspended_until
    assert until is not None and abs((until - timezone.now()).total_seconds() - seconds) < 60


def test_suspend_until_a_time_of_the_clock_of_the_person(trust: Trust, root: Client) -> None:
    device = trust()
    for wrong, error in (
        ("", "Enter the time."),
        ("2001-01-01T00:00:00", "in the future"),
        ("9999-12-31T23:59:59", "Enter an earlier time"),
        ("soon", "valid date"),
    ):
        page = send(root, "suspend", device, end="-1", until=wrong)
        assert page.status_code == 200 and error in text_of(page)
    assert fresh(device).suspended_at is None
    assert f"Time zone: {timezone.get_current_timezone_name()}" in text_of(root.get(url_of("suspend", device)))
    send(root, "suspend", device, end="-1", until=local(LATER))
    assert fresh(device).suspended_until == LATER
    assert send(root, "suspend", fresh(device), reason="\u200b ").status_code == 200


def test_reinstate_needs_the_full_id(trust: Trust, root: Client) -> None:
    device = in_state(trust, "revoked")
    for typed in ("", device.device_id[:-1], device.device_id.swapcase(), "revoked"):
        assert send(root, "reinstate", device, device_id=typed).status_code == 200
    assert fresh(device).revision == device.revision
    assert send(root, "reinstate", device, device_id=f" {device.device_id} ").status_code == 302
    assert not fresh(device).is_revoked


@pytest.fixture
def _names(settings: Any) -> None:
    settings.AMESH = {
        **settings.AMESH,
        "SCOPES": {
            "orders:read": "Read orders.",
            "orders:write": {"text": "Write orders.", "permission": "auth.change_group"},
        },
        "PERMISSIONS": {"notes": "Write notes."},
    }
    lifecycle.reset()


@pytest.mark.usefixtures("_names")
def test_grant_gives_and_takes_what_the_person_may(trust: Trust) -> None:
    device = trust(permissions={"scopes": ["orders:write", "gone:read"], "old": True, "notes": True, "rate": "1/s"})
    people = DatabaseAllowList(by="bob")
    people.put_group("writers", ["orders:write"])
    people.put_group("readers", ["orders:read"])
    client = logged_in(staff("staff", "view_device", "grant_device"))
    page = client.get(url_of("grant", device))
    fields = page.context["form"].fields
    choices = {name: [value for value, _label in fields[name].choices] for name in fields}
    assert set(choices["scopes"]) == {"orders:read", "orders:write", "gone:read"}  # what it has can be taken away
    assert set(choices["permissions"]) == {"notes", "old", "shell"}
    assert choices["groups"] == ["readers"]
    assert "Read orders." in text_of(page)
    wanted = {"scopes": ["orders:read"], "permissions": ["notes"], "groups": ["readers"]}
    assert send(client, "grant", device, **wanted).status_code == 302
    changed = fresh(device)
    assert changed.permissions == {"notes": True, "rate": "1/s", "scopes": ["orders:read"]}
    assert changed.groups == ["readers"]
    for forced in (
        {"scopes": ["orders:write"]},
        {"permissions": ["revoke"]},
        {"permissions": ["enroll"]},
        {"permissions": ["unknown"]},
        {"groups": ["writers"]},
        {"groups": ["none"]},
    ):
        assert send(client, "grant", changed, **forced).status_code == 200, forced
    assert fresh(device).revision == changed.revision
    more = logged_in(staff("more", "view_device", "grant_device", "auth.change_group", "revoke_device"))
    given = {"scopes": ["orders:write"], "permissions": ["notes", "revoke"], "groups": ["writers"]}
    assert send(more, "grant", changed, **given).status_code == 302
    assert fresh(device).permissions["revoke"] is True and fresh(device).groups == ["writers"]


def test_grant_takes_any_names_if_the_settings_have_none(trust: Trust, root: Client) -> None:
    device = trust(permissions={"notes": True, "scopes": ["a:b"]})
    assert 'value="notes"' in root.get(url_of("grant", device)).content.decode()
    staff_alone = logged_in(staff("staff", "view_device", "grant_device"))
    for wrong in ({"scopes": "orders:*:read"}, {"permissions": "rate"}, {"permissions": "notes, revoke"}):
        assert (
            send(staff_alone, "grant", device, **{"scopes": "a:b", "permissions": "notes", **wrong}).status_code == 200
        )
    assert fresh(device).revision == device.revision
    assert send(root, "grant", device, scopes="a:b, c:*", permissions="notes other").status_code == 302
    assert fresh(device).permissions == {"notes": True, "other": True, "scopes": ["a:b", "c:*"]}


def test_an_expiry_is_removed_and_is_never_in_the_past(trust: Trust, root: Client) -> None:
    device = trust()
    assert send(root, "expire", device, expires_at="2001-01-01T00:00:00").status_code == 200
    send(root, "expire", device)
    page = root.get(url_of("expire", device))
    assert page.context["form"]["expires_at"].value() == timezone.make_naive(LATER)
    send(root, "expire", fresh(device), expires_at="")
    assert fresh(device).expires_at is None


def test_names_and_notes_of_people_are_harmless(trust: Trust, root: Client) -> None:
    device = trust()
    assert send(root, "rename", device, name="a\u202eb").status_code == 200
    assert send(root, "note", device, note="x" * 2001).status_code == 200
    send(root, "note", device, note="<script>\u202e1\nsecond line")
    html = root.get(page_of(device)).content.decode()
    assert "<script>\u202e" not in html and "\u202e" not in html and "&lt;script&gt;" in html


# --- many -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state"), [("approve", "pending"), ("deny", "pending"), ("suspend", "active"), ("lift", "suspended")]
)
def test_an_action_of_the_list_decides_about_many(trust: Trust, root: Client, name: str, state: str) -> None:
    devices = [in_state(trust, state) for _ in range(3)]
    other = in_state(trust, "revoked")
    selected = [str(device.pk) for device in (*devices, other)]
    page = root.post(LIST, {"action": f"{name}_selected", "_selected_action": selected})
    shown = text_of(page)
    assert page.status_code == 200 and all(device.device_id in shown for device in (*devices, other))
    assert "Skipped" in shown and "3 devices" in shown
    assert set(page.context["names"].split(",")) == {device.device_id for device in devices}
    assert [fresh(device).revision for device in devices] == [device.revision for device in devices]
    answer = send(root, name, *devices)
    assert answer.headers["Location"] == LIST
    assert len({fresh(device).revision for device in devices}) == 1, "one change for all"
    assert AuditEvent.objects.filter(kind=name).count() == 3 and LogEntry.objects.count() == 3


def test_an_action_needs_its_permission(trust: Trust) -> None:
    device = in_state(trust, "pending")
    client = logged_in(staff("staff", "view_device", "suspend_device"))
    actions = {name for name, _label in client.get(LIST).context["action_form"].fields["action"].choices}
    assert actions == {"", "suspend_selected", "lift_selected"}
    client.post(LIST, {"action": "approve_selected", "_selected_action": [str(device.pk)]})
    assert fresh(device).revision == device.revision


def test_at_most_200_devices_and_some_verbs_only_for_one(
    trust: Trust, root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [trust(), trust()]
    for name in ("grant", "rename", "note", "expire"):
        assert root.get(url_of(name, *devices)).headers["Location"] == LIST
        assert "one device alone" in text_of(root.get(LIST))
    assert root.get(url_of("suspend")).headers["Location"] == LIST
    assert MAX_DEVICES == 200
    monkeypatch.setattr("amesh_django.admin.devices.acting.MAX_DEVICES", 1)
    assert root.get(url_of("suspend", *devices)).headers["Location"] == LIST
    assert "At most 1 devices" in text_of(root.get(LIST))


def test_if_one_of_many_cannot_be_changed_none_is(trust: Trust, root: Client) -> None:
    devices = [in_state(trust, "pending"), in_state(trust, "pending")]
    stale = [*devices]
    DatabaseAllowList(by="bob").approve([devices[1].device_id])
    assert send(root, "approve", *stale).status_code == 200
    assert fresh(devices[0]).revision == devices[0].revision


def test_a_form_from_elsewhere_is_refused(trust: Trust) -> None:
    device = trust()
    client = logged_in(staff("root", is_superuser=True), enforce_csrf_checks=True)
    assert send(client, "suspend", device).status_code == 403
    assert fresh(device).revision == device.revision
