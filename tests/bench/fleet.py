"""Section 8: how long after a revocation at a hub its servers reject the device, carried by a worker and beat of Celery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from amesh_django.test.devices import EphemeralDevice
from authmesh.client.httpx_auth import AmeshAuth
from authmesh.protocol.fleet.feed import FeedMessage
from tests.bench.figures import Row, Section, Target, percentile
from tests.bench.world import World
from tests.fleet.peers import Peer, Reply, peer
from tests.fleet.revoking import follow, pair, revoker, trust_all
from tests.fleet.sites import Site
from tests.support import databases

SERVERS, MANY = 3, 50
MEDIAN_SECONDS, P99_SECONDS = 0.3, 2.0
#: Seconds that one of the fifty servers takes to answer.
HANGS_SECONDS = 10.0
_PATIENCE, _PAUSE, _WARM = 30.0, 0.005, 2


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Revoke devices at a hub with three real servers, and at one with fifty of which one hangs."""
    say("fleet: three servers")
    at_three = _three(world, world.scale.revoked)
    say("fleet: fifty servers")
    at_fifty = _fifty(world, max(2, world.scale.revoked // 5))
    rows = [
        _row(f"{SERVERS} servers", at_three),
        _row(f"{MANY} servers, one of which takes {HANGS_SECONDS:.0f} s", at_fifty),
    ]
    return Section(
        "fleet",
        "The fleet",
        "From the beginning of revoke() at the hub until the last server knows it: the three reject a signed request of the device, and "
        "the fifty, which are threads of this process, have got the message. Hub on PostgreSQL, servers on SQLite, Redis as broker.",
        rows=rows,
        targets=[
            Target(f"{SERVERS} servers, median", percentile(at_three, 0.5), MEDIAN_SECONDS, "s"),
            Target(f"{SERVERS} servers, 99 of 100", percentile(at_three, 0.99), P99_SECONDS, "s"),
            Target(f"{MANY} servers, 99 of 100", percentile(at_fifty, 0.99), P99_SECONDS, "s"),
        ],
    )


def _row(name: str, seconds: Sequence[float]) -> Row:
    note = f"99 of 100 within {percentile(seconds, 0.99):.2f} s, {len(seconds)} revocations"
    return Row(name, "s", list(seconds), note=note)


def _hub(world: World, name: str) -> Site:
    world.postgres.execute(f"CREATE DATABASE {name}")
    database = world.postgres.django(name)
    databases.migrate(database)
    return Site(name, world.folder, {**database, "POOL": "10"}, broker=world.redis.url)  # as relay_project has it


def _devices(count: int) -> list[EphemeralDevice]:
    return [EphemeralDevice(f"device {number}") for number in range(count)]


def _three(world: World, count: int) -> list[float]:
    hub, template = _hub(world, "bench_hub"), databases.sqlite_template(_folder(world, "template"))
    servers = [
        Site(f"server{number}", world.folder, databases.sqlite_copy(template, _folder(world, f"server{number}")))
        for number in range(SERVERS)
    ]
    devices = _devices(count + _WARM)
    for site in (hub, *servers):
        trust_all(site, devices)
    with ExitStack() as stack:
        for server in servers:
            pair(hub, server)
            stack.enter_context(server.serving())
        for program in (hub.worker(8), hub.beat()):
            stack.enter_context(program)
        pool = stack.enter_context(ThreadPoolExecutor(SERVERS))
        revoking = stack.enter_context(revoker(hub))
        found = []
        for device in devices:
            for server in servers:
                assert server.accepts(device)
            rejected = [pool.submit(_rejected, server, device) for server in servers]
            start, _end = revoking.revoke(device.identity.device_id)
            found.append(max(one.result() for one in rejected) - start)
    return found[_WARM:]


def _rejected(server: Site, device: EphemeralDevice) -> float:
    """Return when a server has rejected a device, in Unix seconds."""
    deadline = time.time() + _PATIENCE
    with httpx.Client(auth=AmeshAuth(device), timeout=10) as client:
        while client.get(f"{server.url}check").status_code == 200:
            assert time.time() < deadline, f"{server.url} still accepts the device"
            time.sleep(_PAUSE)
    return time.time()


class _Arrivals:
    """When each device was named to how many servers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at: dict[str, list[float]] = {}

    def note(self, message: FeedMessage, reply: Reply) -> Reply:
        with self._changed:
            for event in message.events:
                self._at.setdefault(event.device_id, []).append(time.time())
            self._changed.notify_all()
        return reply

    def last(self, device_id: str, count: int) -> float:
        """Return when the last of some servers got it."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._at.get(device_id, ())) >= count, _PATIENCE)
            return sorted(self._at[device_id])[count - 1]


def _hang(message: FeedMessage, reply: Reply) -> Reply:
    time.sleep(HANGS_SECONDS)
    return reply


def _fifty(world: World, count: int) -> list[float]:
    hub, arrivals, devices = _hub(world, "bench_many"), _Arrivals(), _devices(count + _WARM)
    trust_all(hub, devices)
    with ExitStack() as stack:
        peers: list[Peer] = [stack.enter_context(peer(behave=arrivals.note)) for _ in range(MANY - 1)]
        slow = stack.enter_context(peer(behave=_hang))
        trust_all(hub, [one.device for one in (*peers, slow)], "target")
        follow(hub, [(one.device.identity.device_id, one.url) for one in (*peers, slow)])
        for program in (hub.worker(8), hub.beat()):
            stack.enter_context(program)
        revoking = stack.enter_context(revoker(hub))
        found = []
        for number, device in enumerate(devices):
            if number == 0:  # until all have got the list, which has no events
                _until(lambda: all(one.epoch for one in peers))
            start, _end = revoking.revoke(device.identity.device_id)
            found.append(arrivals.last(device.identity.device_id, len(peers)) - start)
    return found[_WARM:]


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.time() + _PATIENCE
    while not holds():
        assert time.time() < deadline
        time.sleep(0.05)


def _folder(world: World, name: str) -> Path:
    path = world.folder / f"fleet-{name}"
    path.mkdir()
    return path
