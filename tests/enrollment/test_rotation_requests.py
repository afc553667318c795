"""A person asks a device to replace its key: the server tells the device, its programs say so once, and a new key ends it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from django.test import override_settings

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import MAX_NOTE, WrongState
from amesh_django.models import AuditEvent, Device
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust.sealing import now
from authmesh.client import AmeshAiohttpMiddleware, AmeshAuth, AmeshRequestsAuth, enrolling, fetch, notices
from authmesh.device import LocalDevice
from authmesh.protocol.check import CHECK_PATH, ROTATE_HEADER
from authmesh.protocol.enrollment import parse_token
from authmesh.protocol.errors import DeviceNotFound, InvalidInput
from tests.commands.test_deciding import devices_of, run
from tests.enrollment.test_expiry import known, make_text
from tests.enrollment.test_rotation import ask
from tests.support.front_ends import id_of, invoke

Trust = Callable[..., EphemeralDevice]


def is_told(device: EphemeralDevice) -> bool:
    answer = AmeshClient(device).get(CHECK_PATH)
    assert answer.status_code == 200
    return answer.headers.get(ROTATE_HEADER) == "requested"


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
@pytest.mark.parametrize("middleware", [[], ["amesh_django.middleware.AmeshMiddleware"]])
def test_the_device_is_told_until_the_request_is_withdrawn(amesh_trust: Trust, middleware: list[str]) -> None:
    device, other, people = (
        amesh_trust(EphemeralDevice("one")),
        amesh_trust(EphemeralDevice("two")),
        DatabaseAllowList(by="anna"),
    )
    with override_settings(MIDDLEWARE=middleware):
        assert not is_told(device)
        decided = people.request_rotation([id_of(device)])
        first = decided.devices[0].rotation_requested_at
        assert decided.changed == {id_of(device)} and first is not None and is_told(device) and not is_told(other)
        again = people.request_rotation([id_of(device)])
        assert not again.changed and again.devices[0].rotation_requested_at == first
        people.request_rotation([id_of(device)], wanted=False)
        assert not is_told(device)
    events = AuditEvent.objects.filter(device_id=id_of(device), actor="anna")
    assert [event.kind for event in events] == ["change", "change"]
    assert DatabaseAllowList().verify().ok


@pytest.mark.django_db
def test_a_new_key_ends_the_request_and_keeps_the_note(amesh_trust: Trust, amesh_server: LocalDevice) -> None:
    old, new, people = amesh_trust(), EphemeralDevice(), DatabaseAllowList(by="anna")
    people.request_rotation([id_of(old)])
    people.set_note(id_of(old), "in the window")
    assert ask(old, new, amesh_server).status_code == 200
    assert not is_told(new) and not is_told(old)
    row = Device.objects.get(device_id=id_of(new))
    assert (row.note, row.rotation_requested_at) == ("in the window", None)
    with pytest.raises(DeviceNotFound):
        people.request_rotation([id_of(old)])


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
def test_only_a_device_that_makes_requests_is_asked(amesh_trust: Trust) -> None:
    people, target = DatabaseAllowList(by="anna"), amesh_trust(EphemeralDevice("target"), role="target")
    with pytest.raises(WrongState):
        people.request_rotation([id_of(target)])
    denied = amesh_trust(EphemeralDevice("denied"))
    row = Device.objects.get(device_id=id_of(denied))
    people._sealed.change("x", lambda pending: pending.update(pending.find(pk=row.pk), pending_since=now()))
    people.deny([id_of(denied)])
    with pytest.raises(WrongState):
        people.request_rotation([id_of(denied)])
    revoked = amesh_trust(EphemeralDevice("revoked"))
    people.request_rotation([id_of(revoked)])
    people.revoke(id_of(revoked))
    with pytest.raises(DeviceNotFound):
        people.request_rotation([id_of(revoked)])
    people.add(revoked.entry())  # a decision of its own: nobody has asked since
    assert not is_told(revoked)


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
def test_a_note_is_about_a_device_in_any_state(amesh_trust: Trust) -> None:
    device, people = amesh_trust(), DatabaseAllowList(by="anna")
    people.revoke(id_of(device))
    assert people.set_note(id_of(device), "police report 17").note == "police report 17"
    revision = Device.objects.get().revision
    people.set_note(id_of(device), "police report 17")
    assert Device.objects.get().revision == revision, "the same note is no change"
    with pytest.raises(InvalidInput):
        people.set_note(id_of(device), "x" * (MAX_NOTE + 1))
    with pytest.raises(DeviceNotFound):
        people.set_note("am_0000000000000000", "")
    event = AuditEvent.objects.filter(device_id=id_of(device)).first()
    assert event is not None and (event.kind, event.actor) == ("change", "anna")
    assert DatabaseAllowList().verify().ok


@pytest.mark.django_db
@pytest.mark.usefixtures("amesh_server")
def test_the_commands_set_and_show_both(amesh_trust: Trust) -> None:
    device = amesh_trust(EphemeralDevice("till-1"))
    (found,) = devices_of("note", "till-1", "by the\ndoor")
    assert found["note"] == "by the\ndoor" and found["changed"]
    assert devices_of("note", "till-1", "by the\ndoor")[0]["changed"] is False
    (found,) = devices_of("ask_rotation", "till-1")
    assert found["rotationRequestedAt"] and found["changed"]
    code, text = run("show", "till-1")
    assert code == 0 and "Asked to replace its key" in text and "Note" in text and "by the" in text
    assert "asked to replace its key" in run("list")[1]
    (found,) = devices_of("ask_rotation", id_of(device), "--withdraw")
    assert found["rotationRequestedAt"] is None
    assert devices_of("note", "till-1", "")[0]["note"] is None
    assert "Note" not in run("show", "till-1")[1]


@pytest.fixture
def enrolled(machine: Path, amesh_server: LocalDevice, live_server: Any) -> Iterator[str]:
    """A machine that has enrolled, and that is asked to replace its key. The value is an address of its server."""
    text = make_text(live_server.url)
    enrolling.enroll(parse_token(text), directory=machine, name="m")
    DatabaseAllowList(by="anna").request_rotation([Device.objects.get().device_id])
    notices._told.clear()
    yield f"{live_server.url}/amesh/check"
    notices._told.clear()


def _by_httpx(url: str) -> None:
    with httpx.Client(auth=AmeshAuth()) as client:
        client.get(url)


def _by_requests(url: str) -> None:
    requests.get(url, auth=AmeshRequestsAuth(), timeout=10)


def _by_aiohttp(url: str) -> None:
    async def get() -> None:
        middlewares = [AmeshAiohttpMiddleware()]
        async with aiohttp.ClientSession(middlewares=middlewares) as session, session.get(url) as response:
            await response.read()

    asyncio.run(get())


@pytest.mark.django_db(transaction=True)
def test_each_client_says_so_once(enrolled: str, caplog: pytest.LogCaptureFixture) -> None:
    for get in (_by_httpx, _by_requests, _by_aiohttp, fetch):
        notices._told.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="amesh_django.client"):
            get(enrolled)
            get(enrolled)
        found = [record.getMessage() for record in caplog.records if record.name == "amesh_django.client"]
        assert len(found) == 1, get
        assert "amesh rotate" in found[0] and Device.objects.get().device_id in found[0]


@pytest.mark.django_db(transaction=True)
def test_fetch_and_doctor_say_so_and_rotate_ends_it(enrolled: str) -> None:
    done = invoke(["fetch", enrolled])
    assert done.exit_code == 0 and "asks this device" in done.stderr and "amesh rotate" in done.stderr
    json.loads(done.stdout)  # the warning is beside the body
    url = enrolled.removesuffix("/amesh/check")
    assert any("asks this device to replace its key" in one["message"] for one in known(url))
    assert invoke(["rotate", "--yes"]).exit_code == 0
    assert not any("replace its key" in one["message"] for one in known(url))
