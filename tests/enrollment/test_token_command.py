"""``manage.py amesh_enroll_token``: make, show, and withdraw tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from amesh_django import lifecycle
from amesh_django.models import Device, EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.protocol.enrollment import parse_token
from tests.commands.test_management import call
from tests.enrollment.machines import URL, come, refusal

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("amesh_server")]


def made(*words: str) -> dict[str, Any]:
    done = call("enroll-token", "--name", "sensors", "--url", URL, *words, "--json")
    assert done.code == 0, done.err
    answer: dict[str, Any] = json.loads(done.out)
    return answer


def test_a_token_from_the_command_enrolls() -> None:
    get_user_model().objects.create_user("robot")
    answer = made("--uses", "2", "--ttl", "7d", "--scope", "orders:read", "--user", "robot")
    assert answer["environment"] == {"AMESH_ENROLL_TOKEN": answer["token"]} and answer["state"] == "open"
    token = parse_token(answer["token"])
    row = EnrollmentToken.objects.get()
    assert (token.url, token.jti, token.name, token.expires_at) == (URL, row.jti, "sensors", row.expires_at.timestamp())
    assert (row.expires_at - row.created_at).days == 7 and row.created_by.endswith("(manage.py)")
    assert answer["token"].rpartition(".")[2] not in str(vars(row))  # the secret is not stored
    assert come(token, EphemeralDevice()).status_code == 201
    assert Device.objects.get().user.get_username() == "robot"


def test_the_words_for_a_person(settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "URL": "http://api.example/amesh/", "MAX_CONTROLLERS": 1}
    lifecycle.reset()
    done = call("enroll-token", "--name", "sensors", "--uses", "3")
    assert done.code == 0 and "\nAMESH_ENROLL_TOKEN=amesh-et-v1." in done.out
    assert "An enrollment token for 3 machines: sensors" in done.out and "http://api.example/amesh/" in done.out
    row = EnrollmentToken.objects.get()
    assert f"manage.py amesh_enroll_token --withdraw {row.jti}" in done.err
    assert "up to 3 machines" in done.err and "begins with http://" in done.err
    assert "room for 1 more controller." in done.err


def test_list_and_withdraw() -> None:
    assert "There are no enrollment tokens" in call("enroll-token", "--list").out
    token = parse_token(made("--uses", "2")["token"])
    come(token, EphemeralDevice())
    other = made()["jti"]
    EnrollmentToken.objects.filter(jti=other).update(max_uses=9)
    shown = call("enroll-token", "--list")
    assert token.jti in shown.out and "1 of 2" in shown.out and "changed outside Django" in shown.out
    assert call("enroll-token", "--withdraw", "et_").code == 1  # both begin with it
    assert "No enrollment token" in call("enroll-token", "--withdraw", "et_x").err
    assert call("enroll-token", "--withdraw", other).code == 1
    done = call("enroll-token", "--withdraw", token.jti[:12])
    assert done.code == 0 and "1 machine enrolled with it" in done.out
    states = {one["jti"]: one["state"] for one in json.loads(call("enroll-token", "--list", "--json").out)["tokens"]}
    assert states == {token.jti: "withdrawn", other: "changed"}
    assert refusal(come(token, EphemeralDevice())) == (403, "token_withdrawn")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name of the token is missing"),
        (("--name", "x"), "address of this server is not known"),
        (("--name", "x", "--url", URL, "--ttl", "31d"), "--ttl"),
        (("--name", "x", "--url", URL, "--ttl", ""), "--ttl"),
        (("--name", "x", "--url", URL, "--expires-after", ""), "--expires-after"),
        (("--name", "x", "--url", URL, "--uses", "0"), "--uses"),
        (("--name", "x", "--url", URL, "--uses", "10001"), "--uses"),
        (("--name", "x", "--url", URL, "--scope", "Orders Read"), "is not a scope"),
        (("--name", "x", "--url", URL, "--user", "nobody"), "There is no user"),
        (("--list", "--withdraw", "et_1"), "exclude each other"),
        (("--list", "--uses", "2"), "exclude each other"),
    ],
)
def test_wrong_usage_makes_no_token(words: tuple[str, ...], message: str) -> None:
    done = call("enroll-token", *words)
    assert done.code == 2 and message in done.err, done.err
    assert not EnrollmentToken.objects.exists()


@pytest.mark.parametrize("url", ["api.example", ""])
def test_an_address_that_is_none(settings: Any, url: str) -> None:
    settings.AMESH = {**settings.AMESH, "URL": URL}
    lifecycle.reset()
    done = call("enroll-token", "--name", "x", "--url", url)
    assert done.code == 1 and "address of the server is not valid" in done.err


def test_groups_approval_and_the_life_of_the_keys() -> None:
    current_list().change("alice", lambda pending: pending.put_group("sensors", ["stock:read"]))
    answer = made("--group", "sensors", "--approved", "--expires-after", "90d")
    assert (answer["groups"], answer["approved"], answer["deviceSeconds"]) == (["sensors"], True, 90 * 86400)
    assert "sensors" in call("enroll-token", "--list").out
    for words, hint in (
        (("--group", "sensor"), "Did you mean sensors?"),
        (("--expires-after", "9999d"), "at most 3650d"),
    ):
        done = call("enroll-token", "--name", "x", "--url", URL, *words)
        assert done.code == 2 and hint in done.err
    assert EnrollmentToken.objects.count() == 1
