"""A key that expires: what the server tells the device, and what doctor says."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from amesh_django.enrollment import tokens
from amesh_django.models import Device
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import now as moment
from authmesh.client import enrolling, fetch
from authmesh.protocol.check import CHECK_PATH, EXPIRES_HEADER
from authmesh.protocol.enrollment import parse_token
from tests.enrollment.machines import come, make
from tests.support.front_ends import invoke

DAY = 86400


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
@pytest.mark.parametrize("middleware", [[], ["amesh_django.middleware.AmeshMiddleware"]])
@pytest.mark.parametrize(("life", "said"), [(None, False), (31 * DAY, False), (30 * DAY, True), (60, True)])
def test_answers_say_when_a_key_expires(middleware: list[str], life: int | None, said: bool) -> None:
    machine = EphemeralDevice()
    come(make(device_seconds=life), machine)
    with override_settings(MIDDLEWARE=middleware):
        answer = AmeshClient(machine).get(CHECK_PATH)
    assert answer.status_code == 200 and (EXPIRES_HEADER in answer.headers) is said
    if said:
        expires_at = Device.objects.get().expires_at
        assert expires_at is not None
        assert dt.datetime.fromisoformat(answer.headers[EXPIRES_HEADER]) == expires_at


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
def test_an_expired_key_is_rejected_and_cannot_renew_itself() -> None:
    machine = EphemeralDevice()
    come(make(device_seconds=60), machine)

    def expire(pending: Change) -> None:
        row = pending.find(device_id=machine.identity.device_id)
        assert row is not None
        pending.update(row, expires_at=moment())

    client = AmeshClient(machine)
    assert client.get(CHECK_PATH).status_code == 200
    current_list().change("test", expire)
    assert client.get(CHECK_PATH).status_code == client.post("/amesh/rotate").status_code == 401


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("amesh_server")
def test_doctor_says_so_until_the_key_is_replaced(machine: Path, live_server: Any) -> None:
    text = make_text(live_server.url)
    enrolling.enroll(parse_token(text), directory=machine, name="m")
    (finding,) = known(live_server.url)
    assert finding["status"] == "warning" and "expires on the server at" in finding["message"]
    assert "amesh rotate" in finding["advice"]
    assert EXPIRES_HEADER in fetch(f"{live_server.url}/amesh/check").headers


def make_text(url: str) -> str:
    return tokens.make(url=f"{url}/amesh/", name="x", uses=1, lifetime=60, by="test", device_seconds=29 * DAY).text


def known(url: str) -> list[dict[str, Any]]:
    """Return the findings of doctor about what the server knows, apart from the first."""
    done = invoke(["doctor", url, "--no-relay", "--json"])
    return [one for one in json.loads(done.stdout)["checks"] if one["id"] == "known"][1:]
