"""The machine's end of enrollment: the command, and the first request of a client; against a server that answers."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from django.db import OperationalError

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.enrollment import answering, tokens
from amesh_django.management.home import DatabaseHome
from amesh_django.models import Device, EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from authmesh.client import (
    AmeshAiohttpMiddleware,
    AmeshAuth,
    AmeshRequestsAuth,
    authorization_header,
    enrolling,
    fetch,
    forget_devices,
)
from authmesh.device import FileAllowList, LocalDevice, read_identity
from authmesh.device.servers import ServerStore
from authmesh.files.clock import utc_now
from authmesh.protocol import enrollment
from authmesh.protocol import enrollment_errors as errors
from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.enrollment import parse_token
from authmesh.protocol.errors import DirectoryError, TimestampOutOfRange
from tests.commands.test_management import call
from tests.support.front_ends import answering as another_server
from tests.support.front_ends import invoke

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("amesh_server")]


@pytest.fixture
def token(live_server: Any) -> str:
    """A token for three machines of a server that runs."""
    return tokens.make(url=f"{live_server.url}/amesh/", name="sensors", uses=3, lifetime=3600, by="test").text


def uses() -> int:
    return EnrollmentToken.objects.get().uses


def trusted(machine: Path) -> list[tuple[str, str]]:
    return [(entry.device_id, entry.role) for entry in FileAllowList(LocalDevice(machine)).read()]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stdin", "argument", "variable", "line"])
def test_the_command_enrolls_and_stores_the_server(
    machine: Path, token: str, amesh_server: LocalDevice, live_server: Any, way: str
) -> None:
    line = f"{enrolling.ENROLL_VARIABLE}={token}\n"
    words = {"stdin": ["-"], "argument": [token], "variable": [], "line": ["-"]}[way]
    env = {enrolling.ENROLL_VARIABLE: token} if way == "variable" else {}
    done = invoke(["enroll", *words, "--name", "m-1"], line if way == "line" else token, **env)
    assert done.exit_code == 0 and "Enrolled" in done.stdout, done.output
    assert token not in done.output and ("on the command line" in done.stderr) is (way == "argument")
    assert trusted(machine) == [(amesh_server.identity.device_id, "target")]
    (server,) = ServerStore(machine).read()
    assert (server.url, server.state) == (f"{live_server.url}/amesh/", "active")
    assert Device.objects.get().friendly_name == "m-1"
    assert fetch(f"{live_server.url}/amesh/check", device=LocalDevice(machine)).status_code == 200
    again = invoke(["enroll", "-", "--json"], token)
    answer = json.loads(again.stdout)
    assert (answer["state"], answer["deviceId"]) == ("active", read_identity(machine).device_id) and uses() == 1


def test_a_django_project_enrolls_at_another_one(amesh_server: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    boss, jti = EphemeralDevice("boss"), "et_" + "0" * 32
    text = enrollment.build_token(
        url="https://boss.example/amesh/",
        public_key=boss.identity.public_key,
        jti=jti,
        expires_at=int(time.time()) + 60,
        secret=b"s" * 32,
    )

    def answer(method: str, url: str, *, json: Any, timeout: float) -> Any:
        """Answer as the other server, which cannot run in this process, too."""
        request = enrollment.parse_request(json)
        enrollment.verify_proof(request, secret=b"s" * 32, issuer=boss.identity.device_id)
        return enrollment.build_answer(
            request, state="pending", server_key=boss.identity.public_key, server_name="boss", sign=boss.sign
        )

    monkeypatch.setattr(enrolling, "read_answer", answer)
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, text)
    done = call("enroll")
    assert done.code == 0 and "waits for approval" in done.out, done.err
    assert DatabaseAllowList().get(boss.identity.device_id).role == "target"
    (server,) = ServerStore(amesh_server.path).read()
    assert (server.jti, server.state) == (jti, "pending")
    done = call("rotate")  # its key seals the list of the database
    assert done.code == 1 and "also seals its allow list" in done.err and "integrity --rekey" in done.err


@pytest.mark.parametrize(("secrets", "is_free"), [([None], False), (["file", None], False), (["file"], True)])
def test_a_server_replaces_its_key_if_only_files_seal_its_list(
    db: None, amesh_server: LocalDevice, settings: Any, secrets: list[str | None], is_free: bool
) -> None:
    settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": secrets}
    lifecycle.reset()
    assert (DatabaseHome("alice").rotation_problem() is None) == is_free


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "usage"),
        ("amesh-et-v1.e30.AAAA", "not_an_enrollment_token"),
        ("amesh-bt-v1.x.y.z", "not_an_enrollment_token"),
    ],
)
def test_what_is_no_token_changes_nothing(machine: Path, text: str, code: str) -> None:
    done = invoke(["enroll", "-", "--json"], text)
    assert json.loads(done.stderr)["error"] == code and not machine.exists()


def test_refusals_reach_the_person(machine: Path, token: str) -> None:
    tokens.withdraw(EnrollmentToken.objects.get().jti, by="test")
    done = invoke(["enroll", "-", "--json"], token)
    assert done.exit_code == 1 and json.loads(done.stderr.splitlines()[-1])["error"] == "token_withdrawn"
    assert trusted(machine) == [] and ServerStore(machine).read() == []


def test_a_server_that_may_call_this_device_stays_its_controller(
    machine: Path, token: str, amesh_server: LocalDevice
) -> None:
    device = EphemeralDevice("m").write(machine)
    server = DeviceEntry.new(amesh_server.identity.public_key, "boss", "controller", added_at=utc_now())
    FileAllowList(device).add(server)
    assert invoke(["enroll", "-"], token).exit_code == 0
    assert trusted(machine) == [(amesh_server.identity.device_id, "controller")]


def test_answers_of_something_else_are_not_believed(machine: Path) -> None:
    with another_server() as other:
        url = other.url.partition("/path")[0] + "/amesh/"
        text = tokens.make(url=url, name="x", uses=1, lifetime=60, by="test").text
        cases: list[tuple[int, Any, str]] = [
            (200, {"deviceId": "x", "state": "active", "server": {}, "sig": ""}, "unverified_answer"),
            (200, [], "unverified_answer"),
            (404, "<html>", "unexpected_answer"),
            (302, {}, "unexpected_answer"),
            (200, "x" * 70_000, "unexpected_answer"),
            (500, {"error": "allow_list_integrity_failure"}, "server_unreachable"),
            (503, {"error": "server_busy"}, "server_unreachable"),
            (403, {"error": "new_reason"}, "enrollment_refused"),
            (429, {"error": "too_many_attempts"}, "too_many_attempts"),
            (401, {"error": "timestamp_out_of_range"}, "timestamp_out_of_range"),
        ]
        for status, value, code in cases:
            other.status, other.body = status, json.dumps(value).encode()
            done = invoke(["enroll", "-", "--json"], text)
            assert json.loads(done.stderr)["error"] == code, (status, value)
        sent = json.loads(other.received)
        assert text.rpartition(".")[2] not in other.received.decode() and sent["jti"]
        assert trusted(machine) == []
    done = invoke(["enroll", "-", "--json"], text)
    assert json.loads(done.stderr)["error"] == "server_unreachable"


# --- before the first request ---------------------------------------------------------------------------------------


def by_httpx(url: str) -> int:
    with httpx.Client(auth=AmeshAuth()) as client:
        return client.get(url).status_code


def by_async(url: str) -> int:
    async def send() -> int:
        async with httpx.AsyncClient(auth=AmeshAuth()) as client:
            return (await client.get(url)).status_code

    return asyncio.run(send())


def by_requests(url: str) -> int:
    return requests.get(url, auth=AmeshRequestsAuth(), timeout=10).status_code


def by_fetch(url: str) -> int:
    return fetch(url).status_code


def by_header(url: str) -> int:
    return httpx.get(url, headers={"Authorization": authorization_header("GET", url)}).status_code


def by_aiohttp(url: str) -> int:
    async def call() -> int:
        async with aiohttp.ClientSession(middlewares=[AmeshAiohttpMiddleware()]) as session, session.get(url) as answer:
            return answer.status

    return asyncio.run(call())


WAYS: list[Callable[[str], int]] = [by_httpx, by_async, by_requests, by_aiohttp, by_fetch, by_header]


@pytest.mark.parametrize("way", WAYS)
def test_the_first_request_enrolls(
    machine: Path, token: str, live_server: Any, monkeypatch: pytest.MonkeyPatch, way: Callable[[str], int]
) -> None:
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, token)
    assert way(f"{live_server.url}/amesh/check") == 200
    assert uses() == 1 and len(ServerStore(machine).read()) == 1
    assert enrolling.ENROLL_VARIABLE not in os.environ
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, token)  # as after a restart
    enrolling.reset()
    forget_devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enrolling, "enroll", None)
        assert way(f"{live_server.url}/amesh/check") == 200


def test_a_token_is_for_its_own_server_only(machine: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    EphemeralDevice("m").write(machine)
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, token)
    with another_server() as other:
        assert fetch(other.url).status_code == 200
    assert uses() == 0


def test_a_failure_is_told_and_not_repeated_at_once(
    machine: Path, token: str, live_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, token)
    tokens.withdraw(EnrollmentToken.objects.get().jti, by="test")
    attempts: list[str] = []
    real = enrolling.read_answer

    def read_answer(method: str, url: str, **options: Any) -> Any:
        attempts.append(url)
        return real(method, url, **options)

    monkeypatch.setattr(enrolling, "read_answer", read_answer)
    for _ in range(3):
        with pytest.raises(errors.EnrollmentTokenWithdrawn):
            by_fetch(f"{live_server.url}/amesh/check")
    assert len(attempts) == 1
    monkeypatch.setattr(enrolling.time, "monotonic", lambda: time.perf_counter() + 1e9)
    with pytest.raises(errors.EnrollmentTokenWithdrawn):
        by_fetch(f"{live_server.url}/amesh/check")
    assert len(attempts) == 2
    assert token not in caplog.text and token.rpartition(".")[2] not in caplog.text


def test_a_text_that_is_no_token(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, "amesh-et-v1.secret")
    with another_server() as other:
        with pytest.raises(errors.NotAnEnrollmentToken):
            fetch(other.url)
        EphemeralDevice("m").write(machine)
        with caplog.at_level(logging.WARNING):
            assert fetch(other.url).status_code == fetch(other.url).status_code == 200
    assert caplog.text.count("is ignored") == 1 and "secret" not in caplog.text


# --- answers that are lost ------------------------------------------------------------------------------------------


def test_an_answer_that_is_lost_is_repeated(machine: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is interrupted after it has stored the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "build_answer", lambda *a, **b: (_ for _ in ()).throw(DirectoryError("killed")))
        done = invoke(["enroll", "-", "--json"], token)
        assert json.loads(done.stderr)["error"] == "server_unreachable"
    first = read_identity(machine).device_id
    assert Device.objects.get().device_id == first and trusted(machine) == []
    tokens.withdraw(EnrollmentToken.objects.get().jti, by="test")
    assert invoke(["enroll", "-"], token).exit_code == 0
    assert read_identity(machine).device_id == first and uses() == 1 and len(trusted(machine)) == 1


def test_a_clock_that_is_off(machine: Path, token: str) -> None:
    with pytest.raises(TimestampOutOfRange):
        enrolling.enroll(parse_token(token), directory=machine, now=lambda: utc_now() + timedelta(hours=1))
    assert DatabaseAllowList().read() == []
    lifecycle.reset()


def test_a_damaged_file_of_servers(machine: Path, token: str) -> None:
    assert invoke(["enroll", "-"], token).exit_code == 0
    (machine / "servers.json").write_text("[]")
    with pytest.raises(DirectoryError):
        ServerStore(machine).read()


def test_a_disk_that_is_full(tmp_path: Path, live_server: Any) -> None:
    """At each step of a machine; each of them enrolls with its first key once there is room, and is counted once."""
    token = tokens.make(url=f"{live_server.url}/amesh/", name="m", uses=50, lifetime=60, by="test").text
    real, machines = os.fsync, 0
    for at in range(1, 50):
        count, path = 0, tmp_path / f"m{at}"

        def full(file: int, at: int = at) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full)
            first = invoke(["enroll", "-", "--dir", path, "--name", "m"], token)
        left = read_identity(path).device_id if (path / "identity.json").exists() else None
        assert "Traceback" not in first.output
        then = invoke(["enroll", "-", "--dir", path, "--name", "m"], token)
        assert then.exit_code == 0, (at, then.output)
        assert left in (None, read_identity(path).device_id)
        machines += 1
        if count < at:
            break
    assert machines > 5 and Device.objects.count() == uses() == machines


def test_a_database_that_is_full(machine: Path, token: str) -> None:
    def full(row: EnrollmentToken) -> None:
        raise OperationalError("database or disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "count_use", full)
        done = invoke(["enroll", "-", "--json"], token)
    assert json.loads(done.stderr)["error"] == "server_unreachable" and "disk is full" not in done.output
    assert not Device.objects.exists() and uses() == 0
    first = read_identity(machine).device_id
    assert invoke(["enroll", "-"], token).exit_code == 0
    assert read_identity(machine).device_id == first and Device.objects.count() == uses() == 1


# --- a machine that waits for approval ------------------------------------------------------------------------------


def test_a_machine_that_waits_is_told_so(machine: Path, token: str, live_server: Any) -> None:
    assert invoke(["enroll", "-"], token).exit_code == 0

    def wait(pending: Change, since: Any) -> None:
        row = pending.find(device_id=read_identity(machine).device_id)
        assert row is not None
        pending.update(row, pending_since=since)

    current_list().change("test", lambda pending: wait(pending, utc_now()))
    done = invoke(["enroll", "-"], token)
    assert done.exit_code == 0 and "waits for approval" in done.stdout and "its requests are rejected" in done.stdout
    assert ServerStore(machine).read()[0].state == "pending" and uses() == 1
    assert fetch(f"{live_server.url}/amesh/check", device=LocalDevice(machine)).status_code == 401
    examined = invoke(["doctor", live_server.url, "--no-relay", "--json"])
    assert "wait for the approval" in examined.stdout
    current_list().change("test", lambda pending: wait(pending, None))
    assert "Enrolled\n" in invoke(["enroll", "-"], token).stdout
    assert fetch(f"{live_server.url}/amesh/check", device=LocalDevice(machine)).status_code == 200
