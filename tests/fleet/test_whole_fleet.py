"""A whole fleet as processes: a hub with Celery, and three servers with databases of their own, under gunicorn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from amesh_django.test.devices import EphemeralDevice
from tests.fleet.sites import Program, Site, introduce
from tests.support import databases, services

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.long, pytest.mark.unversioned]

PROCESSES = 8
#: Devices for each of them: a thousand in all.
EACH = 125
#: A limit only for hanging: an update takes a fraction of a second.
SECONDS = 180.0


class Fleet(NamedTuple):
    hub: Site
    servers: list[Site]
    worker: Program


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: services.Redis,
    _sqlite_template: Path,
    _postgres_template: services.Postgres,
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    limit = {"HUB_MAX_PER_MINUTE": 10_000}
    with ExitStack() as stack:
        mine, theirs = (
            stack.enter_context(databases.postgres_copy(_postgres_template, f"amesh_fleet_{name}"))
            for name in ("hub", "server")
        )
        files = []
        for name in ("2", "3"):
            (folder / name).mkdir()
            files.append(databases.sqlite_copy(_sqlite_template, folder / name))
        hub = Site("hub", folder, mine, broker=redis_server.url)
        servers = [Site(f"server-{i}", folder, one, amesh=limit) for i, one in enumerate([theirs, *files], 1)]
        for server in servers:
            introduce(hub, server)
            hub.python(
                f"from amesh_django.fleet import servers\nservers.add({server.device_id!r}, {server.url!r}, by='alice')"
            )
            stack.enter_context(server.serving())
        stack.enter_context(hub.beat())
        yield Fleet(hub, servers, stack.enter_context(hub.worker()))


def trust(site: Site, devices: list[EphemeralDevice]) -> None:
    """Trust many devices in one change."""
    keys = json.dumps([device.identity.public_key.hex() for device in devices])
    site.python(
        "from authmesh.protocol.allow_list import DeviceEntry\nfrom authmesh.protocol.keys import device_id\n"
        f"keys = [bytes.fromhex(text) for text in {keys}]\n"
        "trusted.add_all([DeviceEntry(device_id(key), key, 'm', '2026-01-01T00:00:00.000Z', 'handshake', 'controller', {})"
        " for key in keys])"
    )


def revoked(site: Site) -> set[str]:
    return set(
        site.python("result = list(Device.objects.exclude(revoked_at=None).values_list('device_id', flat=True))")
    )


def wait_until_all_know(fleet: Fleet) -> None:
    deadline = time.monotonic() + SECONDS
    behind = (
        "from amesh_django.fleet import servers\nnow = servers.head()\n"
        "result = any(servers.is_dirty(server, now) for server in servers.every())"
    )
    while fleet.hub.python(behind):
        assert time.monotonic() < deadline, fleet.hub.manage("amesh_servers") + fleet.worker.output()[-3000:]
        time.sleep(0.5)


def test_what_is_revoked_at_the_hub_is_refused_everywhere(fleet: Fleet) -> None:
    lost = EphemeralDevice("lost")
    for site in (fleet.hub, *fleet.servers):
        site.trust(lost)
    assert all(server.accepts(lost) for server in fleet.servers)
    fleet.hub.python(f"trusted.revoke({lost.identity.device_id!r}, reason='stolen')")
    deadline = time.monotonic() + SECONDS
    waiting = list(fleet.servers)
    while waiting := [server for server in waiting if server.accepts(lost)]:
        assert time.monotonic() < deadline, fleet.worker.output()[-3000:]


def test_eight_processes_revoke_at_once(fleet: Fleet) -> None:
    devices = [EphemeralDevice(f"m-{number}") for number in range(PROCESSES * EACH)]
    for site in (fleet.hub, *fleet.servers):
        trust(site, devices)
    ids = [device.identity.device_id for device in devices]
    shares = [ids[number::PROCESSES] for number in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(
            pool.map(lambda share: fleet.hub.python(f"for one in {share}: trusted.revoke(one, reason='lost')"), shares)
        )
    wait_until_all_know(fleet)
    assert set(ids) <= revoked(fleet.hub)
    for server in fleet.servers:
        assert set(ids) <= revoked(server)
        serials = server.python(
            "result = [list(pair) for pair in HubEntry.objects.order_by('id').values_list('device_id', 'serial')]"
        )
        by_device = dict(serials)
        at_hub = fleet.hub.python(
            "result = dict(Device.objects.exclude(revoked_at=None).values_list('device_id', 'revision'))"
        )
        assert {name: by_device[name] for name in ids} == {name: at_hub[name] for name in ids}
        assert len(serials) == len(by_device)  # one word for each key
        rising = [serial for name, serial in serials if name in ids]
        assert rising == sorted(set(rising))
