"""The mail about devices that wait: when it is sent, to whom, what it says, and what happens if it fails."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.approvals import digest, notices
from amesh_django.fleet import sweeping
from amesh_django.models import ApprovalMail, Device
from amesh_django.test.devices import EphemeralDevice
from tests.admin.people import break_seal, staff

NOW = timezone.now() + dt.timedelta(minutes=1)

LOCMEM = "django.core.mail.backends.locmem.EmailBackend"
SMTP = "django.core.mail.backends.smtp.EmailBackend"

pytestmark = pytest.mark.django_db


def use(settings: Any, backend: str) -> None:
    """Send mails with a backend, by the settings that this version of Django wants."""
    if hasattr(mail, "mailers"):
        settings.MAILERS = {"default": {"BACKEND": backend}}
    else:
        settings.EMAIL_BACKEND = backend


@pytest.fixture(autouse=True)
def _approval(db: None, amesh_server: object, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True, "ADMIN_URL": "https://desk.example/admin/"}
    use(settings, LOCMEM)
    lifecycle.reset()
    staff("anna", "view_device", "approve_device", email="anna@example.com")


def wait(*names: str) -> list[str]:
    made = [EphemeralDevice(name) for name in names]
    DatabaseAllowList(by="test").add_all([one.entry() for one in made])
    return [one.identity.device_id for one in made]


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def test_one_mail_in_five_minutes_with_all_who_wait() -> None:
    assert notices.send_if_due(NOW) is None and mail.outbox == []
    (first,) = wait("till-1")
    assert notices.send_if_due(NOW) is None
    (message,) = mail.outbox
    assert (message.subject, message.to) == ("amesh: 1 device waits for approval", ["anna@example.com"])
    assert f"{first}  till-1" in message.body and "https://desk.example/admin/amesh/device/approvals/" in message.body
    assert notices.send_if_due(after(10)) is None  # nobody new
    (second,) = wait("till-2")
    assert notices.send_if_due(after(60)) == 240.0 and len(mail.outbox) == 1
    assert notices.send_if_due(after(300)) is None
    assert mail.outbox[1].subject == "amesh: 2 devices wait for approval"
    assert first in mail.outbox[1].body and second in mail.outbox[1].body
    assert notices.send_if_due(after(900)) is None and len(mail.outbox) == 2
    DatabaseAllowList(by="anna").approve([first, second])
    wait("till-3")
    notices.send_if_due(after(1200))
    assert mail.outbox[2].subject == "amesh: 1 device waits for approval" and first not in mail.outbox[2].body


def test_who_gets_it() -> None:
    staff("boss", is_superuser=True, email="boss@example.com")
    staff("blind", "approve_device", email="blind@example.com")
    staff("viewer", "view_device", email="viewer@example.com")
    staff("gone", "view_device", "approve_device", email="gone@example.com", is_active=False)
    staff("customer", "view_device", "approve_device", email="customer@example.com", is_staff=False)
    staff("mute", "view_device", "approve_device")
    staff("twin", "view_device", "approve_device", email="anna@example.com")
    assert digest.recipients() == ["anna@example.com", "boss@example.com"]


def test_hostile_names_and_many() -> None:
    wait("x\r\nBcc: eve@example.com", "https://evil.example/approve", "\u202emal", *(f"d{n}" for n in range(60)))
    notices.send_if_due(NOW)
    (message,) = mail.outbox
    assert message.subject == "amesh: 63 devices wait for approval" and message.recipients() == ["anna@example.com"]
    assert "and 13 more" in message.body
    assert "\u202e" not in message.body and "evil.example" not in message.body
    assert digest.plain("x\r\nBcc: eve@example.com") == "x Bcc: eve@ example. com"
    assert digest.plain("https://evil.example/a") == "https: / / evil. example/ a"


class Broken(EmailBackend):
    """A mail server that refuses some people, or everybody."""

    refused: tuple[str, ...] = ()

    def send_messages(self, messages: Any) -> int:
        if any(address in self.refused or "*" in self.refused for one in messages for address in one.to):
            raise ConnectionRefusedError("secret of the mail server")
        return super().send_messages(messages)


def test_a_mail_that_fails_is_logged_and_tried_again(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(settings, f"{__name__}.Broken")
    staff("bob", "view_device", "approve_device", email="bob@example.com")
    wait("till")
    monkeypatch.setattr(Broken, "refused", ("*",))
    assert notices.send_if_due(NOW) == 300.0
    assert "0 of 2 people (ConnectionRefusedError)" in caplog.text and "secret" not in caplog.text
    assert notices.send_if_due(after(299)) == 1.0 and mail.outbox == []
    monkeypatch.setattr(Broken, "refused", ("bob@example.com",))  # one bad address stops nobody, and repeats nothing
    assert notices.send_if_due(after(300)) is None and "1 of 2 people" in caplog.text
    assert [one.to for one in mail.outbox] == [["anna@example.com"]]


def test_two_processes_send_one_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    wait("till")
    row = notices._row()
    assert notices.send_if_due(NOW) is None
    monkeypatch.setattr(notices, "_row", lambda: row)  # as read before the other has begun
    notices.send_if_due(NOW)
    monkeypatch.undo()
    row = notices._row()
    wait("till-2")
    notices.send_if_due(after(300))
    monkeypatch.setattr(notices, "_row", lambda: row)
    notices.send_if_due(after(301))
    assert len(mail.outbox) == 2 and ApprovalMail.objects.count() == 1


def test_a_list_that_cannot_be_verified_sends_nothing() -> None:
    (name,) = wait("till")
    break_seal(Device.objects.get(device_id=name))
    with pytest.raises(Exception, match="seal"):
        notices.send_if_due(NOW)
    assert mail.outbox == [] and not ApprovalMail.objects.exists()


def test_nobody_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    User.objects.update(email="")
    wait("till")
    assert notices.send_if_due(NOW) == 300.0
    assert "no active staff user" in caplog.text


@pytest.mark.parametrize(
    ("amesh", "email", "wanted"),
    [
        ({}, SMTP, True),
        ({}, LOCMEM, False),
        ({"APPROVAL_MAIL": False}, SMTP, False),
        ({"REQUIRE_APPROVAL": False}, SMTP, False),
        ({"ADMIN_URL": "desk"}, SMTP, False),
    ],
)
def test_the_settings(settings: Any, amesh: dict[str, Any], email: str, wanted: bool) -> None:
    settings.AMESH = {**settings.AMESH, **amesh}
    use(settings, email)
    lifecycle.reset()
    assert notices.is_wanted() == wanted


def test_the_sweeper_begins_only_if_a_mail_is_due(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(notices._post, "ask", lambda: asked.append(True))
    use(settings, "django.core.mail.backends.filebased.EmailBackend")
    sweeping.sweep(ring=lambda pk: None, now=NOW.timestamp())
    assert not asked
    wait("till")
    sweeping.sweep(ring=lambda pk: None, now=NOW.timestamp())
    assert asked == [True]
    ApprovalMail.objects.create(pk=1, tried_at=NOW)
    sweeping.sweep(ring=lambda pk: None, now=NOW.timestamp())
    assert asked == [True]


class Slow(EmailBackend):
    """A mail server that answers when it is told to."""

    goes_on = threading.Event()
    began = threading.Event()

    def send_messages(self, messages: Any) -> int:
        self.began.set()
        assert self.goes_on.wait(10)
        return super().send_messages(messages)


@pytest.mark.django_db(transaction=True)
def test_the_process_that_added_the_device_sends_and_does_not_wait(settings: Any, caplog: Any) -> None:
    caplog.set_level(logging.ERROR)
    use(settings, f"{__name__}.Slow")
    Slow.goes_on.clear()
    (name,) = wait("till")  # returns while the mail server has not answered
    assert Slow.began.wait(10) and not notices.wait(0)
    Slow.goes_on.set()
    assert notices.wait(10) and not caplog.records
    (message,) = mail.outbox
    assert name in message.body and message.to == ["anna@example.com"]
