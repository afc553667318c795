"""The check address: the answer to a trusted device, and the rejection of everyone else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import Client, override_settings
from django.urls import reverse

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.test import AmeshAsyncClient, AmeshClient, EphemeralDevice
from authmesh.protocol.check import CHECK_PATH, CheckAnswer
from authmesh.protocol.errors import InvalidInput

MIDDLEWARE = ["amesh_django.middleware.AmeshMiddleware"]
Trust = Callable[..., EphemeralDevice]


def test_the_url_is_the_one_that_doctor_requests() -> None:
    assert reverse("amesh_django:check") == CHECK_PATH


@pytest.mark.parametrize("middleware", [[], MIDDLEWARE])
@pytest.mark.parametrize("method", ["get", "post"])
def test_the_answer_describes_the_device(amesh_trust: Trust, middleware: list[str], method: str) -> None:
    device = amesh_trust(permissions={"shell": True})
    with override_settings(MIDDLEWARE=middleware):
        answer = getattr(AmeshClient(device, enforce_csrf_checks=True), method)(CHECK_PATH)
    assert answer.status_code == 200 and answer["Content-Type"] == "application/json"
    found = CheckAnswer.from_json(answer.json())
    assert (found.device_id, found.friendly_name) == (device.identity.device_id, device.identity.friendly_name)
    assert found.role == "controller" and found.permissions == {"shell": True}
    assert found.time is not None and abs(dt.datetime.now(dt.UTC) - found.time) < dt.timedelta(seconds=60)
    assert "no-store" in answer["Cache-Control"] and "Authorization" in answer["Vary"]


@pytest.mark.parametrize("wrong", [{"NO_SUCH_KEY": 1}, {"NONCE_CACHE": "missing"}])
def test_wrong_settings_are_a_rejection_that_the_log_explains(
    amesh_client: AmeshClient, settings: Any, wrong: Any, caplog: Any
) -> None:
    settings.AMESH = {**settings.AMESH, **wrong}
    answer = amesh_client.get(CHECK_PATH)
    assert (answer.status_code, answer.json()) == (500, {"error": "allow_list_integrity_failure"})
    assert "improperly_configured" in caplog.text


def test_under_asgi(amesh_async_client: AmeshAsyncClient) -> None:
    answer = async_to_sync(amesh_async_client.get)(CHECK_PATH)
    assert answer.status_code == 200, answer.content
    assert answer.json()["deviceId"] == amesh_async_client.device.identity.device_id


def test_head_and_other_methods(amesh_client: AmeshClient) -> None:
    answer = amesh_client.head(CHECK_PATH)
    assert answer.status_code == 200 and answer.content == b""
    assert amesh_client.delete(CHECK_PATH).status_code == 405


def test_other_callers_get_no_answer(amesh_trust: Trust, amesh_server: Any) -> None:
    revoked = amesh_trust()
    DatabaseAllowList().revoke(revoked.identity.device_id)
    target = amesh_trust(role="target")
    answers = [(Client().get(CHECK_PATH), 400, "missing_header")]
    for device in (EphemeralDevice(), revoked, target):
        answers.append((AmeshClient(device).get(CHECK_PATH), 401, "unauthorized"))
    late = amesh_trust()
    off = AmeshClient(late, now=lambda: dt.datetime.now(dt.UTC).timestamp() - 60)
    answers.append((off.get(CHECK_PATH), 401, "timestamp_out_of_range"))
    for answer, status, error in answers:
        assert (answer.status_code, answer.json()) == (status, {"error": error})
        assert "no-store" in answer["Cache-Control"]


def test_a_broken_list_is_500(amesh_client: AmeshClient, settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILE": "/nowhere"}
    lifecycle.reset()
    answer = amesh_client.get(CHECK_PATH)
    assert (answer.status_code, answer.json()) == (500, {"error": "allow_list_integrity_failure"})
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.parametrize(
    "value", [None, [], "text", {}, {"deviceId": 1, "friendlyName": "", "role": ""}, {"error": "unauthorized"}]
)
def test_other_bodies_are_not_answers_of_a_check_address(value: Any) -> None:
    with pytest.raises(InvalidInput):
        CheckAnswer.from_json(value)


def test_unknown_members_are_ignored() -> None:
    known = CheckAnswer("am_x", "laptop", "controller", {"shell": True})
    assert CheckAnswer.from_json({**known.to_json(), "more": 1}) == known
