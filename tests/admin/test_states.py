"""The state of a device in the admin: what a page calls trusted is accepted, and nothing else is."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.test import Client
from django.utils import timezone

from amesh_django.admin.shown import STATE_NAMES
from amesh_django.models import Device
from amesh_django.states import ROTATED
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from tests.admin.people import LIST, REVOKE, Trust, page_of, revoke, text_of

NOW = timezone.now().replace(microsecond=0)
EARLIER, LATER = NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=1)


def decide(device: Device, **columns: Any) -> None:
    def work(pending: Change) -> None:
        row = pending.find(device_id=device.device_id)
        assert row is not None
        pending.update(row, **columns)

    current_list().change("alice", work)


def test_each_state_is_shown_and_is_one_choice_of_the_filter(trust: Trust, root: Client) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("active", {}),
        ("active", {"expires_at": LATER}),
        ("active", {"suspended_at": EARLIER, "suspended_until": NOW}),
        ("active", {"revoked_at": LATER, "revoked_by": "am_new", "revoke_reason": ROTATED}),
        ("pending", {"pending_since": EARLIER}),
        ("expired", {"expires_at": EARLIER, "pending_since": EARLIER}),
        ("suspended", {"suspended_at": EARLIER, "suspended_until": LATER, "expires_at": EARLIER}),
        ("suspended", {"suspended_at": EARLIER, "suspended_by": "bob", "suspend_reason": "audit"}),
        ("denied", {"denied_at": EARLIER, "suspended_at": EARLIER}),
        ("revoked", {"revoked_at": EARLIER, "denied_at": EARLIER}),
        ("revoked", {"revoked_at": LATER, "revoked_by": "bob", "revoke_reason": ROTATED}),
        ("revoked", {"revoked_at": EARLIER, "revoked_by": "am_new", "revoke_reason": ROTATED}),
    ]
    devices = []
    for number, (state, columns) in enumerate(cases):
        device = trust(f"number {number}")
        decide(device, **columns)
        devices.append((state, Device.objects.get(pk=device.pk)))
    for state, device in devices:
        assert device.state == state
        page = text_of(root.get(page_of(device)))
        assert f"State: {STATE_NAMES[device.state]} Device ID" in page, device
        assert ("it may authenticate to this server" in page) == (state == "active"), device
        assert ("Revoke…" in page) == (state != "revoked"), device
    for name in STATE_NAMES:
        shown = text_of(root.get(LIST, {"state": "trusted" if name == "active" else name}))
        assert {device for _state, device in devices if device.device_id in shown} == {
            device for state, device in devices if state == name
        }, name


def test_the_page_says_why_a_device_is_not_accepted(trust: Trust, root: Client) -> None:
    device = trust()
    decide(device, suspended_at=EARLIER, suspended_until=LATER, suspended_by="bob", suspend_reason="audit")
    for url in (page_of(device), f"{REVOKE}?devices={device.device_id}"):
        page = text_of(root.get(url))
        assert "by bob: audit. Suspended until" in page


def test_a_key_that_was_replaced_is_trusted_until_its_time_has_come(trust: Trust, root: Client) -> None:
    device, new = trust("old key"), trust("new key")
    decide(device, revoked_at=LATER, revoked_by=new.device_id, revoke_reason=ROTATED)
    for url in (page_of(device), f"{REVOKE}?devices={device.device_id}"):
        page = text_of(root.get(url))
        assert f"The key was replaced by that of {new.device_id}, and is accepted until" in page
    revoke(root, device)
    assert Device.objects.get(pk=device.pk).state == "revoked"
