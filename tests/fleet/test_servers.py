"""The servers of a hub: added, removed, paused; and rows that were changed outside Django."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from amesh_django import lifecycle
from amesh_django.fleet import servers
from amesh_django.models import AuditEvent, Server
from amesh_django.test import EphemeralDevice
from amesh_django.trust import current_list
from authmesh.protocol.errors import InvalidInput
from tests.fleet.servers import URL, add_server, hub, laptops

pytestmark = pytest.mark.usefixtures("db", "amesh_server")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"url": "https://server.example/amesh"}, "not valid"),
        ({"url": "http://server.example/amesh/"}, "http://"),
        ({"scope_of_events": "all"}, "revoke or enroll"),
        ({"groups": ["*"]}, "Groups are for"),
        ({"groups": ["nobody"], "scope_of_events": "enroll"}, "no group"),
        ({"device_id": "am_0000000000000000"}, "not a target"),
    ],
)
def test_a_server_that_cannot_be_one_is_not_added(arguments: dict[str, Any], word: str) -> None:
    device = EphemeralDevice("server")
    hub().add(device.entry("target"))
    with pytest.raises(InvalidInput, match=word):
        servers.add(**{"device_id": device.identity.device_id, "url": URL, **arguments})
    assert not servers.every()


def test_a_controller_or_a_device_that_was_revoked_is_not_a_server() -> None:
    (laptop,) = laptops(1)
    gone = EphemeralDevice("gone")
    hub().add(gone.entry("target"))
    hub().revoke_all([gone.identity.device_id])
    for device in (laptop, gone):
        with pytest.raises(InvalidInput, match="not a target"):
            servers.add(device.identity.device_id, URL)


def test_the_life_of_a_server(django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        server, device = add_server("http://127.0.0.1:8000/amesh/", scope_of_events="enroll", groups=["*"])
        name = device.identity.device_id
        with pytest.raises(InvalidInput, match="already"):
            servers.add(name, URL)
        assert servers.is_genuine(server) and servers.is_dirty(server, servers.head())
        assert servers.public_key_of(name) == device.identity.public_key
        assert not servers.pause(name, by="alice").enabled
        Server.objects.update(attempts=7, next_attempt_at=timezone.now() + dt.timedelta(hours=1))
        assert servers.resume(name, by="alice").enabled
        assert servers.is_genuine(servers.find(name)) and servers.find(name).attempts == 0
        Server.objects.update(attempts=7, next_attempt_at=timezone.now() + dt.timedelta(hours=1))
        assert servers.retry(name).next_attempt_at is None
        servers.remove(name, by="alice")
    with pytest.raises(servers.ServerNotFound):
        servers.find(name)
    events = AuditEvent.objects.filter(kind="server", device_id=name).order_by("id")
    assert [(event.actor, event.subject) for event in events] == [("alice", server.url)] * 4
    assert [event.data.partition('"change": "')[2].split('"')[0] for event in events] == [
        "added",
        "paused",
        "resumed",
        "removed",
    ]


def test_how_far_a_server_is_behind() -> None:
    server, _device = add_server()
    head = servers.head()
    assert servers.lag(server).revisions == head.revision
    server.epoch, server.acked = head
    assert not servers.is_dirty(server, head) and servers.lag(server) == (0, 0.0)
    laptops(1)
    laptops(1)
    AuditEvent.objects.filter(revision=head.revision + 1).update(at=timezone.now() - dt.timedelta(seconds=90))
    server.added_at -= dt.timedelta(hours=1)
    server.save()
    found = servers.lag(server)
    assert found.revisions == 2 and 89 < found.seconds < 120
    assert servers.is_dirty(Server(epoch="another", acked=10**9), head)
    assert not servers.is_dirty(server, ("", 0))


@pytest.mark.parametrize(
    "columns",
    [
        {"url": "https://evil.example/"},
        {"device_id": "am_0000000000000000"},
        {"scope_of_events": "enroll"},
        {"groups_json": '["*"]'},
        {"enabled": False},
        {"mac": ""},
    ],
)
def test_a_row_that_was_changed_outside_django_is_noticed(columns: dict[str, Any]) -> None:
    server, _device = add_server()
    Server.objects.filter(pk=server.pk).update(**columns)
    (found,) = servers.every()
    assert not servers.is_genuine(found)
    with pytest.raises(InvalidInput, match="outside Django"):
        servers.resume(found.device_id)


def test_after_a_rekey_the_rows_get_their_mac_under_the_new_secret(tmp_path: Any, settings: Any) -> None:
    server, _device = add_server()
    new = tmp_path / "seal.key"
    new.write_text("ab" * 32)
    new.chmod(0o600)
    own = {name: value for name, value in settings.AMESH.items() if name != "SEAL_KEY_FILE"}
    settings.AMESH = {**own, "SEAL_KEY_FILES": [str(new), None]}
    assert current_list().rekey()
    assert servers.is_genuine(server)
    servers.renew_all()
    settings.AMESH = {**own, "SEAL_KEY_FILES": [str(new)]}
    lifecycle.reset()
    assert servers.is_genuine(servers.find(server.device_id)) and not servers.is_genuine(server)
