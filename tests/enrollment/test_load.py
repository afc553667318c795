"""Many requests at the same moment, against a server with several processes and threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from django.db import connection

from amesh_django.enrollment import tokens
from amesh_django.models import Device, EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from authmesh.client import AmeshAuth, enrolling, fetch
from authmesh.device import read_identity
from authmesh.protocol.enrollment import parse_token
from tests.enrollment import crowd
from tests.enrollment.machines import body
from tests.support.databases import EACH_ON_ONE_PAIR
from tests.support.front_ends import invoke
from tests.support.services import ROOT, Server

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.parametrize("database", EACH_ON_ONE_PAIR, indirect=True),
]


def make(server: Server, uses: int) -> str:
    return tokens.make(url=f"{server.url}/amesh/", name="load", uses=uses, lifetime=3600, by="test").text


def in_threads(work: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_forty_machines_at_the_same_moment(running: Server, tmp_path: Path) -> None:
    """Forty processes. Exactly as many get in as the token allows, and the server knows those that it told so."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.enrollment.crowd", str(tmp_path), "40"],
        input=make(running, 25),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    found: dict[str, int] = json.loads(printed.splitlines()[-1])
    assert sorted(found.values()) == [crowd.ENROLLED] * 25 + [crowd.USED_UP] * 15, running.output()
    told = {device_id for device_id, code in found.items() if code == crowd.ENROLLED}
    assert {row.device_id for row in Device.objects.all()} == told and EnrollmentToken.objects.get().uses == 25


def test_a_token_is_withdrawn_while_machines_enroll(running: Server) -> None:
    """Every machine that was told so is in, and none comes after the withdrawal."""
    token = parse_token(make(running, 100))
    found: list[int] = []
    counted: list[int] = []

    def enroll() -> None:
        answer = httpx.post(f"{token.url}enroll", json=body(token, EphemeralDevice()), timeout=60)
        found.append(answer.status_code)

    def withdraw() -> None:
        try:
            counted.append(tokens.withdraw(token.jti, by="test").uses)
        finally:
            connection.close()

    in_threads([*[enroll] * 8, withdraw, *[enroll] * 8])
    assert set(found) <= {201, 403} and len(found) == 16, running.output()
    assert found.count(201) == Device.objects.count() == EnrollmentToken.objects.get().uses == counted[0]


def test_many_threads_of_a_machine_enroll_once(running: Server, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(enrolling.ENROLL_VARIABLE, make(running, 5))
    found: list[int] = []
    in_threads([lambda: found.append(fetch(f"{running.url}/amesh/check").status_code)] * 5)
    assert found == [200] * 5 and Device.objects.count() == EnrollmentToken.objects.get().uses == 1


def test_rotation_refuses_no_good_request(running: Server, machine: Path) -> None:
    """Threads send requests with the default device, while its key is replaced five times."""
    enrolling.enroll(parse_token(make(running, 1)), directory=machine, name="machine")
    stop, found = threading.Event(), list[int]()

    def load() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                found.append(client.get(f"{running.url}/amesh/check", auth=AmeshAuth()).status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    ids = {read_identity(machine).device_id}
    try:
        for _ in range(5):
            assert invoke(["rotate"]).exit_code == 0
            ids.add(read_identity(machine).device_id)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(ids) == 6 and len(found) > 10 and set(found) == {200}, running.output()
