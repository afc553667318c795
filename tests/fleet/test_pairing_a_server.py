"""Pairing a hub with a server: after it, the server is one of those that the hub tells what changes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from amesh_django.models import Server
from amesh_django.test.devices import EphemeralDevice
from tests.commands.pairing_terminals import machine, program
from tests.commands.test_management import call
from tests.fleet.sites import Site
from tests.relay.relay_world import address, serving
from tests.support import databases
from tests.support.front_ends import id_of


def folder_of(folder: Path, name: str) -> Path:
    """Return a new folder for the database of a machine."""
    path = folder / f"database-{name}"
    path.mkdir()
    return path


@pytest.mark.process
@pytest.mark.slow
def test_with_an_enrollment_token(_sqlite_template: Path, tmp_path: Path) -> None:
    """The commands of docs/hub.md, in its order: at the server, at the hub, and at the server what the hub prints."""
    hub, api = (
        Site(name, tmp_path, databases.sqlite_copy(_sqlite_template, folder_of(tmp_path, name)))
        for name in ("hub", "api")
    )
    with api.serving():
        printed = api.manage("amesh_enroll_token", "--name", "hub", "--approved")
        (token,) = re.findall(r"^AMESH_ENROLL_TOKEN=(\S+)$", printed, re.MULTILINE)
        shown = hub.manage("amesh_enroll", "--as-hub", AMESH_ENROLL_TOKEN=token)
        assert f"This hub tells {api.device_id} (api) of revocations and suspensions from now on." in shown
        (line,) = re.findall(r"^ *on the server +manage\.py (amesh_grant .+)$", shown, re.MULTILINE)
        granted = api.manage(*shlex.split(line))
        assert "As a hub, it may now revoke and suspend devices here." in granted
        again = json.loads(hub.manage("amesh_enroll", "--as-hub", "--json", AMESH_ENROLL_TOKEN=token))
        assert (again["tells"], again["url"]) == ("revoke", api.url)
    (server,) = json.loads(hub.manage("amesh_servers", "--json"))["servers"]
    assert (server["deviceId"], server["url"], server["scopeOfEvents"]) == (api.device_id, api.url, "revoke")
    (entry,) = json.loads(api.manage("amesh_list", "--json"))["devices"]
    assert (entry["deviceId"], entry["permissions"]) == (hub.device_id, {"revoke": True})


@pytest.mark.process
@pytest.mark.slow
def test_over_a_relay(_sqlite_template: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "relay") as relay:
        hub, api = (
            machine(tmp_path, name, address(relay), databases.sqlite_copy(_sqlite_template, folder_of(tmp_path, name)))
            for name in ("hub", "api")
        )
        with program(api, "listen") as there:
            code = there.until("code")["code"]
            url = "https://api.example/amesh"
            with program(hub, "invite", code, "--yes", "--url", url, "--enroll", "--all-devices") as here:
                shown = here.until("verification_code")["code"]
                there.until("question")
                there.answer(shown)
                (there_ends, _), (here_ends, warned) = there.end(), here.end()
        assert (there_ends, here_ends) == (0, 0), warned
        assert here.steps[-1] == {"step": "server", "deviceId": api.id, "url": f"{url}/"}
    (server,) = json.loads(hub.run("servers", "--json").stdout)["servers"]
    assert (server["deviceId"], server["groups"], server["url"]) == (api.id, ["*"], f"{url}/")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("123456", "--yes", "--enroll"), "need --url"),
        (("123456", "--yes", "--url", "http://api.example/amesh/"), "Use https://"),
        (("123456", "--yes", "--url", "https://api.example/amesh/", "--enroll", "--group", "no"), "no group 'no'"),
    ],
)
@pytest.mark.usefixtures("amesh_server")
def test_a_server_that_cannot_be_added_is_not_paired(words: tuple[str, ...], message: str) -> None:
    """Two people need not meet to learn that."""
    done = call("invite", *words, "--relay", "ws://127.0.0.1:1/ws")
    assert done.code and message in done.err and not Server.objects.exists(), done.err
    done = call("enroll", "x", "--enroll", "--all-devices")
    assert done.code == 2 and "need --as-hub" in done.err


@pytest.mark.django_db
def test_pairing_again_changes_no_address(amesh_trust: Callable[..., EphemeralDevice]) -> None:
    api = amesh_trust(EphemeralDevice("api"), "target")
    assert call("servers", "add", "api", "--url", "https://api.example/amesh/").code == 0
    assert call("servers", "add", "api", "--url", "https://api.example/amesh").code == 0  # the same
    done = call("servers", "add", "api", "--url", "https://other.example/amesh/")
    assert done.code == 1 and "with another address" in done.err and f"remove {id_of(api)}" in done.err
    assert Server.objects.get().url == "https://api.example/amesh/"
