"""Adding a device by hand in the admin: the line, the comparison, what is refused, and who may do it."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, expect

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.models import AuditEvent, Device
from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol.key_line import build_key_line
from tests.admin.browsing import Site, aside, fits, open_page, press_to, running
from tests.admin.people import LIST, Trust, break_seal, logged_in, page_of, staff, text_of
from tests.support import fork_server
from tests.support.databases import as_default

ADD = f"{LIST}add-by-hand/"
SCOPES = {"orders:read": "Read.", "orders:pay": {"text": "Pay.", "permission": "auth.delete_user"}}


def line_of(device: EphemeralDevice, name: str = "") -> str:
    return build_key_line(device.identity.public_key, name or device.identity.friendly_name)


def compare(client: Client, line: str) -> Any:
    return client.post(ADD, {"line": line})


def trusted(client: Client, line: str, **given: Any) -> Any:
    data = {"line": line, "step": "compare", "compared": "on", "role": "controller", **given}
    return client.post(ADD, data, follow=True)


def with_settings(settings: Any, **changes: Any) -> None:
    settings.AMESH = {**settings.AMESH, "SCOPES": SCOPES, **changes}
    lifecycle.reset()


@pytest.mark.django_db
def test_the_line_the_comparison_and_the_device(root: Client, settings: Any) -> None:
    with_settings(settings)
    DatabaseAllowList(by="test").put_group("tills", ["orders:read"])
    robot = User.objects.create_user("robot")
    new = EphemeralDevice("till-4")
    assert "Add by hand" in text_of(root.get(LIST))
    shown = text_of(compare(root, f'"{line_of(new)[:40]}\n  {line_of(new)[40:]}"'))
    assert new.identity.device_id in shown and "till-4" in shown and not Device.objects.exists()
    assert "Compare the device ID first" in text_of(trusted(root, line_of(new), compared=""))
    assert not Device.objects.exists()
    response = trusted(
        root,
        line_of(new),
        scopes=["orders:read"],
        groups=["tills"],
        user="robot",
        device_days="30",
        permissions="shell",
    )
    row = Device.objects.get()
    assert f"Added: till-4 ({new.identity.device_id})" in text_of(response)
    assert response.redirect_chain == [(page_of(row), 302)]
    assert (row.device_id, row.role, row.added_by, row.groups, row.user) == (
        new.identity.device_id, "controller", "manual", ["tills"], robot,
    )  # fmt: skip
    assert row.permissions == {"shell": True, "scopes": ["orders:read"]}
    assert row.expires_at is not None and row.expires_at - timezone.now() > dt.timedelta(days=29)
    event = AuditEvent.objects.get(kind="trust")
    assert (event.actor, event.actor_type, event.device_id) == ("root", "user", row.device_id)
    assert LogEntry.objects.get().object_id == str(row.pk)
    DatabaseAllowList(by="test").read()  # the seal holds


@pytest.mark.django_db
def test_a_target_gets_nothing(root: Client, settings: Any) -> None:
    with_settings(settings, REQUIRE_APPROVAL=True)
    new = EphemeralDevice("printer")
    trusted(root, line_of(new), role="target", scopes=["orders:read"], device_days="3")
    row = Device.objects.get()
    assert (row.role, row.permissions, row.expires_at, row.state) == ("target", {}, None, "active")


@pytest.mark.django_db
def test_who_may_not_approve_adds_a_device_that_waits(settings: Any, amesh_server: Any) -> None:
    with_settings(settings, REQUIRE_APPROVAL=True)
    clerk = logged_in(staff("clerk", "view_device", "enroll_device"))
    assert "waits for approval" in text_of(trusted(clerk, line_of(EphemeralDevice("a")), approved="on"))
    assert Device.objects.get().state == "pending"
    boss = logged_in(staff("boss", "view_device", "enroll_device", "approve_device"))
    second = EphemeralDevice("b")
    assert "is trusted now" in text_of(trusted(boss, line_of(second), approved="on"))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Paste the line"),
        ("ssh-ed25519 AAAA", "This is not a line of export-key"),
        ("amesh-key-v9.x.y.z", "another version of amesh"),
        ("cut", "incomplete"),
        ("two", "There are several lines"),
    ],
)
def test_wrong_lines(root: Client, line: str, message: str) -> None:
    good = line_of(EphemeralDevice("a"))
    response = compare(root, {"cut": good[:-3], "two": f"{good}\n{good}"}.get(line, line))
    assert message in text_of(response) and "Trust the device" not in text_of(response)
    assert "<pre" not in response.content.decode() and not Device.objects.exists()


@pytest.mark.django_db
def test_a_name_that_could_deceive(root: Client) -> None:
    new = EphemeralDevice("x")
    response = compare(root, line_of(new, "\u202e<b>evil</b>\nroot"))
    assert "left out" in text_of(response) and "<b>evil" not in response.content.decode()
    trusted(root, line_of(new, "\u202e<b>evil</b>\nroot"))
    assert "\u202e" not in Device.objects.get().friendly_name and "\n" not in Device.objects.get().friendly_name


@pytest.mark.django_db
def test_keys_that_are_in_the_list(root: Client, settings: Any, amesh_server: Any) -> None:
    with_settings(settings, REQUIRE_APPROVAL=True)
    people = DatabaseAllowList(by="alice", approved=True)
    devices = {name: EphemeralDevice(name) for name in ("known", "gone", "no", "waits", "away", "target")}
    for name, device in devices.items():
        by = DatabaseAllowList(by="bob") if name in ("no", "waits") else people
        by.add(device.entry(**({"role": "target"} if name == "target" else {})))
    ids = {name: device.identity.device_id for name, device in devices.items()}
    people.revoke(ids["gone"], reason="sold")
    people.deny([ids["no"]], reason="not ours")
    people.suspend([ids["away"]])
    before = list(Device.objects.order_by("pk").values())
    for name, message, advice in (
        ("known", "trusted already", "open its page"),
        ("target", "is a target already", "amesh_trust"),
        ("gone", "was revoked. Revoked", "reinstate it on its page"),
        ("no", "was denied. Denied", "approve it on its page"),
        ("waits", "waits for approval", "Approve it or deny it"),
        ("away", "is suspended", "lift the suspension"),
    ):
        for response in (compare(root, line_of(devices[name])), trusted(root, line_of(devices[name]))):
            shown = text_of(response)
            assert message in shown and advice in shown and "Trust the device" not in shown, name
            assert page_of(Device.objects.get(device_id=ids[name])) in response.content.decode()
    assert list(Device.objects.order_by("pk").values()) == before
    assert "sold" in text_of(compare(root, line_of(devices["gone"])))
    server = amesh_server.identity.public_key
    assert "key of this server itself" in text_of(compare(root, build_key_line(server, "me")))


@pytest.mark.django_db
def test_a_full_list_says_so_and_takes_no_more(trust: Trust, root: Client, settings: Any) -> None:
    trust("first")
    with_settings(settings, MAX_CONTROLLERS=1)
    new = EphemeralDevice("second")
    assert "as many controllers as it may have" in text_of(compare(root, line_of(new)))
    assert "1 controller" in text_of(trusted(root, line_of(new)))
    assert Device.objects.count() == 1
    trusted(root, line_of(new), role="target")
    assert Device.objects.count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("permissions", "is_allowed"),
    [
        ((), False),
        (("enroll_device",), False),
        (("view_device",), False),
        (("view_device", "enroll_device"), True),
        (
            (
                "view_device", "change_device", "revoke_device", "approve_device", "suspend_device", "reinstate_device",
                "grant_device", "pair_device", "add_enrollmenttoken", "view_enrollmenttoken",
            ),
            False,
        ),
    ],
)  # fmt: skip
def test_permissions(permissions: tuple[str, ...], is_allowed: bool, amesh_server: Any) -> None:
    client, line = logged_in(staff("clerk", *permissions)), line_of(EphemeralDevice("a"))
    expected = 200 if is_allowed else 403
    assert {client.get(ADD).status_code, compare(client, line).status_code} == {expected}
    assert trusted(client, line).status_code == expected
    assert Device.objects.exists() == is_allowed
    assert Client(enforce_csrf_checks=True).post(ADD, {"line": line}).status_code in (302, 403)


@pytest.mark.django_db
def test_nobody_gives_what_they_may_not_give(settings: Any, amesh_server: Any) -> None:
    with_settings(settings)
    DatabaseAllowList(by="test").put_group("payers", ["orders:pay"])
    User.objects.create_superuser("boss")
    client, line = logged_in(staff("clerk", "view_device", "enroll_device")), line_of(EphemeralDevice("a"))
    page = text_of(compare(client, line))
    assert "orders:read" in page and "orders:pay" not in page and "Permissions" not in page and "user" not in page
    assert "Select a valid choice" in text_of(trusted(client, line, scopes=["orders:pay"]))
    assert "You need: auth.delete_user" in text_of(trusted(client, line, groups=["payers"]))
    assert not Device.objects.exists()
    trusted(client, line, permissions="shell", user="boss")  # fields that the form does not have
    row = Device.objects.get()
    assert (row.permissions, row.user) == ({}, None)


@pytest.mark.django_db
def test_a_broken_seal_offers_nothing(trust: Trust, root: Client) -> None:
    break_seal(trust())
    line = line_of(EphemeralDevice("a"))
    for response in (root.get(ADD), compare(root, line), trusted(root, line)):
        shown = text_of(response)
        assert "does not match its seal" in shown and "No device can be added now" in shown
        assert "Show the device ID" not in shown and "Trust the device" not in shown
    assert Device.objects.count() == 1


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(sqlite_database: dict[str, str], tmp_path: Path, settings: Any, django_db_blocker: Any) -> Iterator[Site]:
    with (
        django_db_blocker.unblock(),
        as_default(sqlite_database),
        running(sqlite_database, tmp_path / "device", settings) as found,
    ):
        yield found


@pytest.mark.process
@pytest.mark.slow
def test_the_keyboard_alone_with_a_real_line(site: Site, browser: Browser, tmp_path: Path) -> None:
    env = {**os.environ, "AUTH_MESH_DIR": str(tmp_path / "till"), "AUTH_MESH_PASSPHRASE": "secret"}
    for number, (scheme, screen) in enumerate((("light", "desk"), ("dark", "phone"))):
        env["AUTH_MESH_DIR"] = str(tmp_path / f"till-{number}")
        _amesh(env, "init", "--name", f"till-{number}", "--no-input")
        line = _amesh(env, "export-key").strip()
        page = open_page(browser, site, scheme, screen)
        page.goto(LIST)
        press_to(page, "Add by hand…")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Add a device by hand")
        assert fits(page)
        press_to(page, "Line of export-key")
        page.keyboard.insert_text(line)
        press_to(page, "Show the device ID")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Compare the device ID")
        assert fits(page)
        shown = page.locator(".amesh-large code").inner_text()
        assert shown in _amesh(env, "list")
        press_to(page, "I have compared")
        page.keyboard.press("Space")
        press_to(page, "Trust the device")
        page.keyboard.press("Enter")
        expect(page.get_by_text(f"Added: till-{number} ({shown})")).to_be_visible()
        assert aside(lambda name=shown: Device.objects.get(device_id=name).state) == "active"  # type: ignore[misc]


def _amesh(env: dict[str, str], *words: str) -> str:
    done = fork_server.run([sys.executable, "-m", "authmesh", *words], env=env)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
