"""``manage.py amesh_servers``: list, add, remove, pause, resume, retry."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.checks import check_fleet
from amesh_django.fleet import overview, servers
from amesh_django.models import Server
from amesh_django.test.devices import EphemeralDevice
from amesh_django.trust.owner import server_directory
from authmesh.device import LocalDevice
from authmesh.device.servers import ServerStore
from tests.commands.test_management import call
from tests.support.front_ends import id_of

pytestmark = pytest.mark.django_db

URL = "https://api.example/amesh/"


@pytest.fixture
def api(amesh_trust: Callable[..., EphemeralDevice]) -> EphemeralDevice:
    """A server that this hub trusts as a target."""
    return amesh_trust(EphemeralDevice("api"), "target")


def listed() -> list[dict[str, Any]]:
    done = call("servers", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["servers"]
    return found


def head() -> dict[str, Any]:
    found = servers.head()
    return {"epoch": found.epoch, "acked": found.revision}


def test_a_server_is_added_and_listed(api: EphemeralDevice, amesh_server: LocalDevice) -> None:
    assert "There are no servers" in call("servers").out
    done = call("servers", "add", "api", "--url", URL.rstrip("/"))
    assert done.code == 0 and f"tells {id_of(api)} (api) of revocations and suspensions" in done.out, done.err
    assert f"manage.py amesh_grant {amesh_server.identity.device_id} --permission revoke\n" in done.out
    assert "AMESH['URL'] is not set" in done.err
    row = Server.objects.get()
    assert (row.device_id, row.url, row.groups) == (id_of(api), URL, []) and servers.is_genuine(row)
    assert row.added_by.endswith("(manage.py)")
    (known,) = ServerStore(server_directory()).read()  # a rotation of the hub asks it, too
    assert (known.device_id, known.url) == (id_of(api), URL)
    (shown,) = listed()
    assert (shown["deviceId"], shown["friendlyName"], shown["state"], shown["lag"]) == (id_of(api), "api", "waiting", 1)
    assert "lacks the whole list for" in call("servers").out
    Server.objects.update(epoch=servers.head().epoch)
    assert "lacks 1 change, the oldest for" in call("servers").out
    Server.objects.update(**head(), last_ok_at=timezone.now())
    text = call("servers").out
    assert "[up to date]" in text and URL in text and "lacks" not in text
    (shown,) = listed()
    assert (shown["state"], shown["lag"], shown["lagSeconds"]) == ("up_to_date", 0, 0.0)


def test_with_enroll_it_is_told_which_devices_to_trust(api: EphemeralDevice) -> None:
    DatabaseAllowList().put_group("sensors", [])
    done = call("servers", "add", id_of(api)[:9], "--url", URL, "--enroll", "--group", "sensors")
    assert done.code == 0 and "--permission revoke --permission enroll\n" in done.out, done.err
    row = Server.objects.get()
    assert (row.scope_of_events, row.groups) == ("enroll", ["sensors"])
    assert "devices to trust in sensors" in call("servers").out
    assert call("servers", "remove", "api", "--yes").code == 0
    assert call("servers", "add", "api", "--url", URL, "--enroll", "--all-devices").code == 0
    assert Server.objects.get().groups == ["*"] and "all devices to trust" in call("servers").out


def test_each_state_is_shown_with_what_to_do(api: EphemeralDevice) -> None:
    call("servers", "add", "api", "--url", URL)
    row = Server.objects.get()
    later = timezone.now() + dt.timedelta(seconds=91)
    assert overview.every(later)[0].state == "silent"

    def state(**columns: Any) -> str:
        Server.objects.update(**columns)
        (shown,) = listed()
        return str(shown["state"])

    assert state(attempts=3, last_error="permission_missing") == "failing"
    text = call("servers").out
    assert "last error: permission_missing (3 attempts since the last answer)" in text and "Nothing is lost" in text
    refused = [{"serial": 4, "device": "am_x", "event": "trust", "why": "max_controllers", "at": "2026-01-01"}]
    Server.objects.update(refused_json=json.dumps(refused))
    assert "refused: trust am_x (max_controllers)" in call("servers").out and listed()[0]["refused"] == refused
    for damaged in ("{", "[1]", '{"a": 1}'):
        Server.objects.update(refused_json=damaged)
        assert listed()[0]["refused"] == []
    assert call("servers", "retry", "api").code == 0
    assert Server.objects.get().attempts == 0
    assert state(url="https://thief.example/amesh/") == "changed"
    assert "changed outside Django" in call("servers").out
    assert "changed outside Django" in call("servers", "pause", "api", "--yes").err
    assert state(url=row.url, last_error="") == "waiting"
    assert call("servers", "pause", "api", "--yes").code == 0 and state() == "paused"
    assert not Server.objects.get().enabled
    assert call("servers", "resume", URL).code == 0 and state() == "waiting"
    DatabaseAllowList().revoke(id_of(api))
    assert state() == "untrusted"


def test_a_server_that_has_more_than_its_hub_does_not_look_healthy(
    api: EphemeralDevice, amesh_trust: Callable[..., EphemeralDevice], admin_client: Client
) -> None:
    """The list of the hub was restored, and nobody has noticed. The server is told of nothing, and has confirmed nothing."""
    call("servers", "add", "api", "--url", URL)
    newest = servers.head()
    Server.objects.update(epoch=newest.epoch, acked=newest.revision + 5, last_ok_at=timezone.now())
    (shown,) = listed()
    assert (shown["state"], shown["lag"]) == ("ahead", 0)
    text = call("servers").out
    assert "[ahead]" in text and "amesh_integrity --reseal" in text
    page = admin_client.get("/admin/amesh/server/").content.decode()
    assert '<span class="amesh-state amesh-revoked">ahead</span>' in page
    (found,) = (one for one in check_fleet(None, databases=["default"]) if one.id == "amesh.W022")
    assert id_of(api) in found.msg
    amesh_trust(EphemeralDevice("phone"))
    assert "0 of 1 servers" in call("revoke", "phone", "--yes").out
    Server.objects.update(acked=servers.head().revision)
    assert listed()[0]["state"] == "up_to_date"
    assert "amesh.W022" not in [one.id for one in check_fleet(None, databases=["default"])]


def test_removing_asks_first(api: EphemeralDevice) -> None:
    call("servers", "add", "api", "--url", URL)
    assert call("servers", "remove", "api", "--no-input").code == 1 and Server.objects.exists()
    assert call("servers", "remove", "api", "--yes", "--json").code == 0 and not Server.objects.exists()
    assert call("servers", "remove", "api", "--yes").code == 1


def test_revoking_says_what_is_under_way(api: EphemeralDevice, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    amesh_trust(EphemeralDevice("laptop")), amesh_trust(EphemeralDevice("phone"))
    assert "confirmed" not in call("revoke", "laptop", "--yes").out
    call("servers", "add", "api", "--url", URL)
    done = call("revoke", "phone", "--yes")
    assert "0 of 1 servers have confirmed it, and the others are being told." in done.out, done.err


def test_how_many_have_acknowledged(api: EphemeralDevice, amesh_trust: Callable[..., EphemeralDevice]) -> None:
    amesh_trust(EphemeralDevice("edge"), "target")
    call("servers", "add", "api", "--url", URL)
    call("servers", "add", "edge", "--url", "https://edge.example/amesh/")
    revision = servers.head().revision
    assert overview.acknowledged(revision) == (0, 2)
    Server.objects.filter(device_id=id_of(api)).update(**head())
    assert overview.acknowledged(revision) == (1, 2) and overview.acknowledged(revision + 1) == (0, 2)
    Server.objects.update(epoch="another")
    assert overview.acknowledged(1) == (0, 2)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("add",), 2, "needs the device ID or name"),
        (("list", "api"), 2, "takes no name"),
        (("add", "api"), 2, "address of the server is missing"),
        (("add", "api", "--url", URL, "--enroll"), 2, "--all-devices"),
        (("add", "api", "--url", URL, "--all-devices"), 2, "need --enroll"),
        (("add", "api", "--url", URL, "--enroll", "--all-devices", "--group", "g"), 2, "exclude each other"),
        (("add", "api", "--url", URL, "--enroll", "--group", "g"), 1, "no group"),
        (("add", "api", "--url", "http://api.example/amesh/"), 1, "Use https://"),
        (("add", "laptop", "--url", URL), 1, "is not a target"),
        (("add", "nobody", "--url", URL), 1, "No trusted device has the name"),
        (("pause", "api"), 1, "No server of this hub is called api"),
        (("pause", "api", "--url", URL), 2, "only used with servers add"),
    ],
)
def test_wrong_usage_adds_nothing(
    words: tuple[str, ...], code: int, message: str, api: EphemeralDevice, amesh_trust: Callable[..., EphemeralDevice]
) -> None:
    amesh_trust(EphemeralDevice("laptop"))
    lifecycle.reset()
    done = call("servers", *words)
    assert (done.code, Server.objects.count()) == (code, 0) and message in done.err, done.err
