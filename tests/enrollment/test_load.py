"""Many requests at the same moment, against a server with several processes and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from amesh_django.enrollment import tokens
from amesh_django.models import Device, EnrollmentToken
from amesh_django.test.devices import EphemeralDevice
from authmesh.client import AmeshAuth, enrolling, fetch
from authmesh.device import read_identity
from authmesh.protocol.enrollment import parse_token
from tests.enrollment.machines import body
from tests.support.front_ends import invoke
from tests.support.services import Server

pytestmark = [pytest.mark.process, pytest.mark.slow]


def make(server: Server, uses: int) -> str:
    return tokens.make(url=f"{server.url}/amesh/", name="load", uses=uses, lifetime=3600, by="test").text


def in_threads(work: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_forty_machines_at_the_same_moment(running: Server) -> None:
    """Exactly as many get in as the token allows."""
    token = parse_token(make(running, 25))
    found: list[tuple[int, str]] = []
    start = threading.Barrier(40)

    def enroll(number: int) -> None:
        value = body(token, EphemeralDevice(f"m{number}"))
        with httpx.Client(timeout=60) as client:
            start.wait()
            answer = client.post(f"{token.url}enroll", json=value)
        found.append((answer.status_code, answer.json().get("error", "")))

    in_threads([lambda number=number: enroll(number) for number in range(40)])  # type: ignore[misc]
    assert sorted(found) == [(201, "")] * 25 + [(403, "token_used_up")] * 15, running.output()
    assert Device.objects.count() == EnrollmentToken.objects.get().uses == 25


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
