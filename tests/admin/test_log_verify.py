"""Verifying the audit log from the admin: at once, in the background, and what the pages say about it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.utils import timezone

from amesh_django.admin.log import verifying
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.audit import background, checkpoints, verifications
from amesh_django.audit.background import Running
from amesh_django.conf import nonce_cache
from amesh_django.models import AuditEvent
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.protocol.errors import AllowListBusy
from tests.admin.people import JOURNAL, Trust, break_seal, logged_in, staff, text_of
from tests.support.databases import as_default

VERIFY = f"{JOURNAL}verify/"


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    caches[nonce_cache()].clear()
    yield
    caches[nonce_cache()].clear()


@pytest.fixture
def site(sqlite_database: dict[str, str], django_db_blocker: Any, amesh_server: object) -> Iterator[Client]:
    """A superuser of a server with two devices, and a database without a transaction around the test."""
    with django_db_blocker.unblock(), as_default(sqlite_database):
        for name in ("till", "phone"):
            DatabaseAllowList(by="anna").add(EphemeralDevice(name).entry())
        yield logged_in(staff("root", is_superuser=True))


def verify(client: Client, scope: str = "whole") -> str:
    """Verify the log, and return the text of the page after it."""
    response = client.post(VERIFY, {"scope": scope}, follow=True)
    assert response.redirect_chain == [(VERIFY, 302)]
    return text_of(response)


def ended() -> None:
    """Wait until no verification runs in the background."""
    for thread in threading.enumerate():
        if thread.name == "amesh-verify":
            thread.join(20)
            assert not thread.is_alive()


def change_outside_django() -> None:
    AuditEvent.objects.filter(seq=1).update(text="nothing happened")


def test_a_short_log_is_verified_at_once(site: Client) -> None:
    assert "The log was never verified." in text_of(site.get(VERIFY))
    page = verify(site)
    assert "The audit log is as amesh wrote it. Events: 2." in page
    assert "Last verified" in page and "by root: it is as amesh wrote it" in page
    event = AuditEvent.objects.latest("pk")
    assert (event.kind, event.actor, event.actor_type, event.text) == ("verified", "root", "user", "")
    assert "by root: it is as amesh wrote it" in text_of(site.get(JOURNAL))


def test_a_fault_is_named_everywhere(site: Client) -> None:
    change_outside_django()
    page = verify(site)
    assert "The audit log has a fault: changed 1. Event 1 is not as amesh wrote it." in page
    assert "by root: the log has a fault: changed 1." in page
    page = text_of(site.get(JOURNAL))
    assert "by root: the log has a fault: changed 1." in page
    assert "root verified the audit log: it has a fault: changed 1" in page


def test_only_what_came_after_the_newest_checkpoint(site: Client) -> None:
    assert "There is no valid checkpoint, so the whole log is verified." in verify(site, "newest")
    checkpoints.make(current_list(), timezone.now(), at_once=True)
    DatabaseAllowList(by="anna").add(EphemeralDevice("third").entry())
    change_outside_django()
    page = verify(site, "newest")
    assert "by root, from event 2 on: it is as amesh wrote it. Events: 2." in page
    assert "changed 1" in verify(site, "whole")


def test_a_long_log_is_verified_in_the_background(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "MAX_AT_ONCE", 1)
    begun, go = threading.Event(), threading.Event()

    def slowly(by: str, *, progress: Any, **options: Any) -> Any:
        progress(1)
        begun.set()
        assert go.wait(20)
        return verifications.verify_and_record(by, progress=progress, **options)

    monkeypatch.setattr(background, "verify_and_record", slowly)
    page = verify(site)
    assert "That goes on if you leave this page." in page
    assert begun.wait(20)
    response = site.get(VERIFY)
    assert "root has the log verified since" in text_of(response)
    assert "Events so far: 1 of 2." in text_of(response)
    html = response.content.decode()
    assert '<progress class="amesh-log-progress" max="2" value="1"' in html and "log.js" in html
    assert "root has the log verified since" in text_of(site.get(JOURNAL))
    assert "The log is being verified already." in verify(site)
    go.set()
    ended()
    page = site.get(VERIFY)
    assert "Last verified" in text_of(page) and "log.js" not in page.content.decode()
    assert AuditEvent.objects.get(kind="verified").actor == "root"


def test_a_verification_that_ends_without_a_result_says_why(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "MAX_AT_ONCE", 0)

    def busy(*args: Any, **options: Any) -> None:
        raise AllowListBusy()

    monkeypatch.setattr(background, "verify_and_record", busy)
    verify(site)
    ended()
    page = text_of(site.get(VERIFY))
    assert "ended without a result:" in page and str(AllowListBusy().message) in page
    assert not AuditEvent.objects.filter(kind="verified").exists()
    monkeypatch.undo()
    assert "ended without a result" not in verify(site)
    monkeypatch.setattr(
        verifying, "verifications", type("Busy", (), {"verify_and_record": busy, "last_verified": lambda: None})
    )
    assert str(AllowListBusy().message) in verify(site)


def test_a_process_that_died_leaves_no_verification_behind(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LIFE_SECONDS", 0)  # it expires at once
    monkeypatch.setattr(background, "_run", lambda *args: None)
    assert background.start("root", 2)
    assert background.running() is None
    assert background.start("root", 2)


def test_without_the_cache_the_log_is_verified_nevertheless(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def down() -> None:
        raise ConnectionError

    monkeypatch.setattr(verifying, "MAX_AT_ONCE", 0)
    monkeypatch.setattr(background, "_cache", down)
    verify(site)
    ended()
    assert "by root: it is as amesh wrote it" in text_of(site.get(VERIFY))
    assert background.running() is None


@pytest.mark.parametrize("value", ["x", {"by": 1}, 7])
def test_what_another_program_writes_to_the_cache_is_ignored(site: Client, value: Any) -> None:
    caches[nonce_cache()].set(background._key(), value)
    assert background.running() is None
    assert site.get(VERIFY).status_code == 200


def test_hostile_names_are_harmless(site: Client) -> None:
    hostile = Running("\u202e<b>", 0.0, 5, 1)
    background._tell(hostile, 60)
    assert "\u202e" not in site.get(VERIFY).content.decode()
    assert "<b>" not in site.get(VERIFY).content.decode().partition("amesh-log-state")[2].partition("</p>")[0]


def test_the_log_can_be_verified_with_a_broken_seal(
    trust: Trust, root: Client, django_capture_on_commit_callbacks: Any
) -> None:
    break_seal(trust("till"))
    with django_capture_on_commit_callbacks(execute=True):
        page = verify(root)
    assert "does not match its seal" in page
    assert "The audit log is as amesh wrote it. Events: 1." in page


def test_only_those_who_may_verify_do(trust: Trust) -> None:
    trust()
    for permissions in (
        ("view_auditevent",),
        ("export_auditevent",),
        ("view_device", "change_device", "manage_server"),
    ):
        client = logged_in(staff("-".join(permissions), *permissions))
        assert client.get(VERIFY).status_code == 403
        assert client.post(VERIFY, {"scope": "whole"}).status_code == 403
    assert not AuditEvent.objects.filter(kind="verified").exists()
    both = staff("both", "view_auditevent", "export_auditevent")
    assert logged_in(both).get(VERIFY).status_code == 200
    assert logged_in(both, enforce_csrf_checks=True).post(VERIFY, {"scope": "whole"}).status_code == 403
    assert logged_in(both).post(VERIFY, {"scope": "x"}).status_code == 200
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM amesh_auditevent WHERE kind = 'verified'")
        assert cursor.fetchone() == (0,)
