"""Enrollment tokens in the admin: made and shown once, withdrawn, with the machines that came; and who may hand out what."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from playwright.sync_api import Browser, expect
from playwright.sync_api import Error as PlaywrightError

from amesh_django import lifecycle
from amesh_django.admin.tokens import TokenAdmin
from amesh_django.enrollment import tokens
from amesh_django.models import EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol.enrollment import parse_token
from tests.admin.browsing import Site, aside, open_page, running
from tests.admin.people import logged_in, staff, text_of
from tests.enrollment import machines
from tests.support import fork_server
from tests.support.databases import as_default

TOKENS = "/admin/amesh/enrollmenttoken/"
ADD = f"{TOKENS}add/"
MADE = re.compile(r"amesh-et-v1\.[A-Za-z0-9_.-]+")


@pytest.fixture(autouse=True)
def _address(request: pytest.FixtureRequest) -> None:
    if "site" not in request.fixturenames:
        settings = request.getfixturevalue("settings")
        request.getfixturevalue("amesh_server")
        settings.AMESH = {
            **settings.AMESH,
            "URL": machines.URL,
            "SCOPES": {"orders:read": "Read.", "orders:pay": {"text": "Pay.", "permission": "auth.delete_user"}},
        }
        lifecycle.reset()


def make(client: Client, **given: Any) -> Any:
    return client.post(ADD, {"name": "sensors", "uses": "2", "lifetime": "3600", **given})


def token_in(response: Any) -> str:
    (found,) = set(MADE.findall(response.content.decode()))
    return found


@pytest.mark.django_db
def test_a_token_is_shown_once_and_works(root: Client, caplog: pytest.LogCaptureFixture) -> None:
    robot = User.objects.create_user("robot")
    with caplog.at_level(logging.DEBUG):
        response = make(root, scopes="orders:read", user="robot", device_days="90", approved="on")
    assert response.status_code == 200 and "no-store" in response["Cache-Control"]
    text = token_in(response)
    secret, row = text.rpartition(".")[2], EnrollmentToken.objects.get()
    assert (row.name, row.max_uses, row.scopes, row.user, row.device_seconds, row.approved, row.created_by) == (
        "sensors", 2, ["orders:read"], robot, 90 * 86400, True, "root",
    )  # fmt: skip
    machine = EphemeralDevice("sensor-17")
    assert machines.come(parse_token(text), machine).status_code == 201
    shown = [root.get(page) for page in (TOKENS, f"{TOKENS}{row.pk}/change/", "/admin/", ADD)]
    assert all(secret not in page.content.decode() for page in shown)
    assert secret not in caplog.text and secret not in str(dict(root.session))
    assert not any(secret in f"{entry.change_message}{entry.object_repr}" for entry in LogEntry.objects.all())
    assert "1 of 2" in text_of(shown[0]) and "open" in text_of(shown[0])
    assert "sensor-17" in text_of(shown[1])


@pytest.mark.django_db
def test_the_lines_for_machines(root: Client) -> None:
    response = make(root)
    token = token_in(response)
    parts = re.findall(r"<pre[^>]*><code[^>]*>(.*?)</code></pre>", response.content.decode(), re.DOTALL)
    one, cloud, variable, task, env, container = map(html.unescape, parts)
    assert one == "amesh enroll -" and container == "docker run --env-file amesh.env IMAGE"
    assert env == f"AMESH_ENROLL_TOKEN={token}" and variable == f"amesh_enroll_token: {token}"
    assert f"content: {token}\n" in cloud and '"amesh enroll - < /run/amesh-token; rm -f' in cloud
    assert 'stdin: "{{ amesh_enroll_token }}"' in task and token not in task and "no_log: true" in task
    assert not any(f"enroll {token}" in part for part in parts)  # never an argument


@pytest.mark.django_db
def test_withdraw(root: Client) -> None:
    token = parse_token(token_in(make(root)))
    row = EnrollmentToken.objects.get()
    page = f"{TOKENS}{row.pk}/withdraw/"
    assert "No further machine" in text_of(root.get(page))
    assert EnrollmentToken.objects.get().withdrawn_at is None  # a GET withdraws nothing
    assert "was withdrawn" in text_of(root.post(page, follow=True))
    assert machines.refusal(machines.come(token, EphemeralDevice())) == (403, "token_withdrawn")
    assert "withdrawn" in text_of(root.get(f"{TOKENS}?state=withdrawn"))
    assert "sensors" not in text_of(root.get(f"{TOKENS}?state=open")).partition("tokens")[2].partition("Filter")[0]
    assert Client(enforce_csrf_checks=True).post(page).status_code in (302, 403)
    EnrollmentToken.objects.update(max_uses=99)  # outside Django
    assert "CHANGED outside Django" in text_of(root.get(TOKENS))


@pytest.mark.django_db
def test_a_machine_with_a_forged_name_is_shown_by_its_id(root: Client) -> None:
    machine = EphemeralDevice("sensor")
    machines.come(parse_token(token_in(make(root))), machine)
    page = f"{TOKENS}{EnrollmentToken.objects.get().pk}/change/"
    assert "sensor (am_" in text_of(root.get(page))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE amesh_device SET friendly_name = 'forged'")
        cursor.execute("UPDATE amesh_allowlistseal SET touched = 0")
    shown = text_of(root.get(page))
    assert f"forged ({machine.identity.device_id})" not in shown and machine.identity.device_id in shown
    assert "does not match its seal" in shown


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        ((), set()),
        (("view_enrollmenttoken",), {"view"}),
        (("add_enrollmenttoken",), {"add"}),
        (("withdraw_enrollmenttoken",), set()),
        (("view_enrollmenttoken", "withdraw_enrollmenttoken"), {"view", "withdraw"}),
        (("view_device", "change_device", "revoke_device", "approve_device"), set()),
    ],
)
def test_permissions(permissions: tuple[str, ...], allowed: set[str]) -> None:
    row = tokens.make(url=machines.URL, name="x", uses=1, lifetime=60, by="test").row
    client = logged_in(staff("clerk", *permissions))
    pages = {"view": TOKENS, "add": ADD, "withdraw": f"{TOKENS}{row.pk}/withdraw/"}
    assert {name for name, page in pages.items() if client.get(page).status_code == 200} == allowed
    assert (client.post(pages["withdraw"]).status_code == 403) is ("withdraw" not in allowed)
    assert (make(client).status_code == 403) is ("add" not in allowed)
    assert EnrollmentToken.objects.count() == 1 + ("add" in allowed)
    for page in (f"{TOKENS}{row.pk}/change/", f"{TOKENS}{row.pk}/delete/"):
        assert client.post(page, {"max_uses": "9"}).status_code in (403, 302)
    assert EnrollmentToken.objects.get(pk=row.pk).max_uses == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(90, "1 minute 30 seconds"), (5400, "1 hour 30 minutes"), (36 * 3600, "1 day 12 hours"), (90 * 86400, "90 days")],
)
def test_the_life_of_keys_is_not_rounded(seconds: int, shown: str) -> None:
    row = EnrollmentToken(device_seconds=seconds)
    assert TokenAdmin(EnrollmentToken, admin.site).shown_life(row) == shown


@pytest.mark.django_db
def test_nobody_hands_out_what_they_may_not_give() -> None:
    User.objects.create_superuser("boss")
    User.objects.create_user("customer")
    clerk = staff("clerk", "add_enrollmenttoken")
    client = logged_in(clerk)
    page = text_of(client.get(ADD))
    assert "Mapped user" not in page and "Approved" not in page
    refused = make(client, scopes="orders:pay")
    assert "You need: auth.delete_user" in text_of(refused) and not EnrollmentToken.objects.exists()
    assert make(client, user="boss", approved="on").status_code == 200  # fields that the form does not have
    row = EnrollmentToken.objects.get()
    assert row.user is None and not row.approved
    EnrollmentToken.objects.all().delete()

    mapper = logged_in(staff("mapper", "add_enrollmenttoken", "auth.view_user", "auth.change_user"))
    assert "is a superuser" in text_of(make(mapper, user="boss"))
    assert "no user with this name" in text_of(make(mapper, user="nobody"))
    assert not EnrollmentToken.objects.exists()
    assert make(mapper, user="customer").status_code == 200
    assert EnrollmentToken.objects.get().user == User.objects.get(username="customer")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": ""}, "This field is required"),
        ({"name": "a\u202eb"}, "printable characters"),
        ({"uses": "0"}, "greater than or equal to 1"),
        ({"uses": "10001"}, "less than or equal to 10000"),
        ({"lifetime": "99999999"}, "Select a valid choice"),
        ({"scopes": "orders:raed"}, "Did you mean orders:read?"),
        ({"device_days": "0"}, "greater than or equal to 1"),
    ],
)
def test_what_is_no_token(root: Client, given: dict[str, str], message: str) -> None:
    assert message in text_of(make(root, **given)) and not EnrollmentToken.objects.exists()


@pytest.mark.django_db
def test_without_an_address_no_token_is_made(root: Client, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "URL": None}
    lifecycle.reset()
    assert "Set AMESH['URL']" in text_of(make(root)) and not EnrollmentToken.objects.exists()


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
def test_make_enroll_and_withdraw_in_the_browser(site: Site, browser: Browser, tmp_path: Path) -> None:
    for scheme, screen in (("light", "desk"), ("dark", "phone")):
        page = open_page(browser, site, scheme, screen)
        page.goto(TOKENS)
        page.get_by_role("link", name="Add enrollment token").first.click()
        page.get_by_label("Name", exact=True).fill(f"sensors {screen} " + "long" * 20)
        page.get_by_label("Machines").fill("40")
        assert _fits(page)
        page.get_by_role("button", name="Make the token").click()
        expect(page.get_by_text("Copy the token now")).to_be_visible()
        assert _fits(page) and "amesh-et-v1" not in page.url
        shown = page.locator(".amesh-token code").inner_text()
        assert parse_token(shown).name.startswith(f"sensors {screen}")  # type: ignore[union-attr]
        command = page.locator(".amesh-block code").first.inner_text().removeprefix("amesh ").split()
        env = {**os.environ, "AUTH_MESH_DIR": str(tmp_path / screen), "AUTH_MESH_PASSPHRASE": "secret"}
        pasted = f"{_at(shown, site.url)}\n"
        done = fork_server.run([sys.executable, "-m", "authmesh", *command], env=env, input=pasted)
        assert done.returncode == 0 and "Enrolled" in done.stdout, done.stderr
        page.get_by_role("link", name="I have copied it").click()
        with pytest.raises(PlaywrightError, match="ERR_CACHE_MISS"):  # the browser kept no copy
            page.go_back()
        page = page.context.new_page()
        page.goto(TOKENS)
        assert _fits(page)
        page.get_by_role("link", name=f"sensors {screen}").first.click()
        assert _fits(page)
        page.get_by_role("link", name="Withdraw").click()
        assert _fits(page)
        page.get_by_role("button", name="Withdraw the token").click()
        expect(page.get_by_text("The token was withdrawn")).to_be_visible()
        expect(page.get_by_role("link", name="Withdraw…")).to_have_count(0)
    assert aside(lambda: EnrollmentToken.objects.filter(withdrawn_at=None).count()) == 0


def _at(token: str, url: str) -> str:
    """Return the token with the address at which the server of the test listens: the settings name a public one."""
    kind, middle, secret = token.split(".")
    about = json.loads(base64.urlsafe_b64decode(middle + "=="))
    text = json.dumps({**about, "url": f"{url}/amesh/"}).encode()
    return ".".join((kind, base64.urlsafe_b64encode(text).decode().rstrip("="), secret))


def _fits(page: Any) -> bool:
    """Return True if nothing sticks out at the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))
