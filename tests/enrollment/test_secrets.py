"""Tokens of an earlier identity or secret of the seal, and of another server."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from amesh_django import lifecycle
from amesh_django.enrollment import tokens
from amesh_django.models import EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from tests.commands.test_management import answer, call
from tests.enrollment.machines import come, make, refusal
from tests.trust.test_rekeying import Secrets

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("amesh_server")]


@pytest.fixture
def secrets(tmp_path: Path, settings: Any) -> Secrets:
    return Secrets(tmp_path, settings)


def listed() -> list[str]:
    return [one["state"] for one in json.loads(call("enroll-token", "--list", "--json").out)["tokens"]]


def test_a_token_of_an_earlier_secret_is_void_and_no_alarm(secrets: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    secrets.use(secrets.old)
    token = make()
    secrets.use(secrets.new)
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token") and listed() == ["void"]
    assert "another identity or secret" in call("enroll-token", "--list").out
    done = call("enroll-token", "--withdraw", token.jti)
    assert done.code == 1 and "another identity or secret" in done.err
    assert not [record for record in caplog.records if record.levelno >= logging.CRITICAL]


def test_a_row_of_another_secret_opens_nothing(secrets: Secrets) -> None:
    """Somebody who knows the old secret writes a row and names the new one in it."""
    secrets.use(secrets.old)
    make()
    secrets.use(secrets.new)
    token = make()
    old, new = EnrollmentToken.objects.order_by("id")
    EnrollmentToken.objects.filter(pk=old.pk).update(key_id=new.key_id)
    assert listed() == ["open", "changed"]
    EnrollmentToken.objects.filter(pk=new.pk).update(key_id=old.key_id)
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token")


def test_another_identity_ends_the_tokens_and_says_so(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets.use(secrets.old)
    token = make()
    come(token, EphemeralDevice())
    answer(monkeypatch, "n\n")
    done = call("init", "--name", "new", "--force")
    assert "1 open enrollment token of this server will no longer work" in done.out + done.err
    assert listed() == ["open"]
    assert call("init", "--name", "new", "--max-controllers", "9", "--force", "--yes").code == 0
    lifecycle.reset()
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token") and listed() == ["void"]
    assert come(make(), EphemeralDevice()).status_code == 201


def test_a_token_of_another_server() -> None:
    token = make()
    other = EphemeralDevice("other")
    for changed in ({"issuer": other.identity.device_id}, {"secret": b"s" * 32}):
        assert refusal(come(dataclasses.replace(token, **changed), EphemeralDevice())) == (401, "invalid_token")
    assert tokens.find(token.jti).uses == 0  # type: ignore[union-attr]
