"""``python -m tests.soak``: a hub with many servers, while calls fail and workers are killed. Nothing may be lost.

Processes of the hub revoke devices, ten a second, as those of gunicorn do. Two workers of Celery carry that to the servers, and one of them is killed every twenty
seconds, in turn. The servers are threads of this process that know the protocol; of twenty calls, one fails. In the end, each server must
have all that the hub has revoked, by events or by the signed list, and no process may have grown.
"""

from __future__ import annotations

import argparse
import queue
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jwt

from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol.encoding import b64url_decode
from authmesh.protocol.fleet.events import key_hash
from authmesh.protocol.fleet.feed import FeedMessage
from authmesh.protocol.keys import load_public_key
from tests.fleet.peers import Peer, Reply, peer
from tests.fleet.revoking import Revoker, follow, revoker, trust_all
from tests.fleet.sites import Program, Site
from tests.support import databases
from tests.support.services import running_postgres, running_redis

FAILS, KILL_SECONDS, CHANGES_A_SECOND = 0.05, 20.0, 10
#: Processes of the hub that revoke, and the share of the changes that they must make.
PROCESSES, MIN_SHARE = 4, 0.95
#: How long a server may lag while all this happens, and how long the rest may take in the end; in seconds. The lease of a worker that was
#: killed ends after six, another needs some seconds to start, and may be killed, too. So the lag has a bound, and must not grow with time.
MAX_LAG, MAX_REST = 30.0, 30.0
#: Age from which the memory of a process is watched, in seconds, and how much it may grow from then on, in MiB.
WARM_SECONDS, MAX_GROWTH = 15.0, 16.0
#: Devices that are trusted in one change: they are words of a command line.
_CHUNK = 500


class Following:
    """What one server has been told, with calls that fail now and then.

    Args:
        server: the server.
        hub: the hub that it follows.
    """

    def __init__(self, server: Peer, hub: EphemeralDevice) -> None:
        self.server = server
        self.calls = self.failures = self.lists = 0
        self.revoked: dict[bytes, float] = {}
        self._hub_key = load_public_key(hub.identity.public_key)
        self._before = (server.epoch, server.applied)
        server.behave = self._behave

    def _behave(self, message: FeedMessage, reply: Reply) -> Reply | None:
        """Fail before the message is applied, after that, or without an answer; or note what it says. The server holds its lock."""
        self.calls += 1
        fault = random.choice(("before", "after", "cut")) if random.random() < FAILS else ""
        self.failures += bool(fault)
        if fault == "before":
            self.server.epoch, self.server.applied = self._before
            return 503, {"error": "unavailable"}, {}
        if reply[0] == 200:
            self._note(message)
        self._before = (self.server.epoch, self.server.applied)
        if fault == "cut":
            return None
        return (503, {"error": "unavailable"}, {}) if fault else reply

    def _note(self, message: FeedMessage) -> None:
        now = time.time()
        known = self._before[1] if message.epoch == self._before[0] else 0
        keys = [event.key for event in message.events if event.event == "revoke" and event.serial > known]
        if message.revocations:
            self.lists += 1
            claims = jwt.decode(message.revocations, self._hub_key, algorithms=["ES256"])
            keys += [b64url_decode(one["key"]) for one in claims["revoked"]]
        for key in keys:
            self.revoked.setdefault(key, now)


@dataclass
class Memory:
    """The resident memory of processes, from when they are warm.

    Attributes:
        growth: by how many MiB each has grown, by its name and process ID.
    """

    growth: dict[tuple[str, int], float] = field(default_factory=dict)
    _born: dict[int, float] = field(default_factory=dict)
    _warm: dict[int, float] = field(default_factory=dict)

    def look(self, name: str, pid: int) -> None:
        """Look how large a process is."""
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
        now = time.monotonic()
        if now - self._born.setdefault(pid, now) >= WARM_SECONDS:
            self.growth[name, pid] = size - self._warm.setdefault(pid, size)

    def most(self, name: str) -> float:
        """Return by how much the process of that name grew that grew most."""
        return max((grown for (kind, _), grown in self.growth.items() if kind == name), default=0.0)


class Workers:
    """Two workers of a hub, of which one is killed now and then, in turn.

    Args:
        hub: the hub.
    """

    def __init__(self, hub: Site) -> None:
        self._hub = hub
        self._running: list[tuple[ExitStack, Program]] = []
        self.killed = 0

    @contextmanager
    def __call__(self) -> Iterator[Workers]:
        """Run them during the block, which begins when they are ready."""
        try:
            self._start()
            self._start()
            while self._running[0][1].output().count("ready.") < 2:
                time.sleep(0.1)
            yield self
        finally:
            for stack, _ in self._running:
                stack.close()

    def kill(self) -> None:
        """Kill the older one, and start another."""
        stack, worker = self._running.pop(0)
        worker.send(signal.SIGKILL)
        stack.close()
        self.killed += 1
        self._start()

    def look(self, memory: Memory) -> None:
        for _, worker in self._running:
            memory.look("worker", worker.pid)

    def _start(self) -> None:
        stack = ExitStack()
        name = f"worker{self.killed + len(self._running)}"
        self._running.append((stack, stack.enter_context(self._hub.worker(8, name))))


def run(seconds: float, number: int) -> int:
    """Soak, print what was found, and return the number of faults.

    Args:
        seconds: how long devices are revoked.
        number: how many servers there are.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amesh-soak-")))
        redis, postgres = stack.enter_context(running_redis()), stack.enter_context(running_postgres())
        postgres.execute("CREATE DATABASE soak")
        database = postgres.django("soak")
        databases.migrate(database)
        hub = Site("hub", folder, database, broker=redis.url)
        devices = [EphemeralDevice(f"device {count}") for count in range(int(seconds * CHANGES_A_SECOND))]
        peers = [stack.enter_context(peer()) for _ in range(number)]
        found = [Following(one, hub.device) for one in peers]
        for start in range(0, len(devices), _CHUNK):
            trust_all(hub, devices[start : start + _CHUNK])
        trust_all(hub, [one.device for one in peers], "target")
        follow(hub, [(one.device.identity.device_id, one.url) for one in peers])
        beat = stack.enter_context(hub.beat())
        revoking = [stack.enter_context(revoker(hub)) for _ in range(PROCESSES)]
        workers = stack.enter_context(Workers(hub)())
        memory = Memory()
        revoked = _revoke(revoking, devices, workers, beat, memory, seconds)
        rest = _wait_for(found, set(revoked))
        faults = [*_lost(found, set(revoked), hub), *_rows(hub)]
        rate = len(revoked) / seconds
        if rate < MIN_SHARE * CHANGES_A_SECOND:
            faults.append(f"Only {rate:.1f} devices a second were revoked. There should be {CHANGES_A_SECOND}.")
        return _report(found, revoked, memory, workers.killed, rest, faults)


def _revoke(
    revoking: Sequence[Revoker],
    devices: Sequence[EphemeralDevice],
    workers: Workers,
    beat: Program,
    memory: Memory,
    seconds: float,
) -> dict[bytes, tuple[float, float]]:
    """Revoke the devices while workers are killed. Return when revoking each key began and ended, in Unix seconds."""
    idle: queue.SimpleQueue[Revoker] = queue.SimpleQueue()
    for process in revoking:
        idle.put(process)

    def revoke(process: Revoker, device_id: str) -> tuple[float, float]:
        try:
            return process.revoke(device_id)
        finally:
            idle.put(process)

    revoked: dict[bytes, Future[tuple[float, float]]] = {}
    start = time.monotonic()
    next_kill, next_look = start + KILL_SECONDS, start
    with ThreadPoolExecutor(len(revoking)) as pool:
        for count, device in enumerate(devices):
            time.sleep(max(0.0, start + count / CHANGES_A_SECOND - time.monotonic()))
            process = idle.get()
            now = time.monotonic()
            if now > start + seconds:
                break
            identity = device.identity
            revoked[key_hash(identity.public_key)] = pool.submit(revoke, process, identity.device_id)
            if now > next_kill:
                workers.kill()
                next_kill += KILL_SECONDS
            if now > next_look:
                workers.look(memory)
                memory.look("beat", beat.pid)
                for one in revoking:
                    memory.look("hub", one.pid)
                next_look += 1
        return {key: one.result() for key, one in revoked.items()}


def _wait_for(found: Sequence[Following], revoked: set[bytes]) -> float:
    """Wait until each server has all. Return the seconds that it took."""
    start = time.monotonic()
    while time.monotonic() - start < MAX_REST and any(revoked - set(one.revoked) for one in found):
        time.sleep(0.05)
    return time.monotonic() - start


def _lost(found: Sequence[Following], revoked: set[bytes], hub: Site) -> Iterator[str]:
    """Yield where a server does not have exactly what the hub has revoked."""
    at_hub = {
        bytes.fromhex(key)
        for key in hub.python(
            "from authmesh.protocol.fleet.events import key_hash\nfrom authmesh.protocol.keys import decode_public_key\n"
            "rows = Device.objects.filter(revoked_at__isnull=False)\n"
            "result = [key_hash(decode_public_key(row.public_key)).hex() for row in rows]"
        )
    }
    if at_hub != revoked:
        yield f"The hub has revoked {len(at_hub)} devices, and was told to revoke {len(revoked)}."
    for one in found:
        missing, more = len(at_hub - set(one.revoked)), len(set(one.revoked) - at_hub)
        if missing or more:
            yield f"{one.server.url} lacks {missing} of {len(at_hub)} revocations, and has {more} that the hub does not have."


def _rows(hub: Site) -> Iterator[str]:
    """Yield which servers the hub takes for not up to date, although they have had time."""
    code = (
        "from amesh_django.fleet import servers\nhead = servers.head()\n"
        "result = [[row.url, row.last_error] for row in servers.every() if servers.is_dirty(row, head)]"
    )
    end = time.monotonic() + MAX_REST
    while (late := hub.python(code)) and time.monotonic() < end:
        time.sleep(0.5)
    for url, error in late:
        yield f"The hub takes {url} for behind: {error or 'no error'}"


def _report(
    found: Sequence[Following],
    revoked: dict[bytes, tuple[float, float]],
    memory: Memory,
    killed: int,
    rest: float,
    faults: list[str],
) -> int:
    timed = sorted(
        (end, one.revoked[key] - end) for one in found for key, (_, end) in revoked.items() if key in one.revoked
    )
    halves = [sorted(lag for _end, lag in half) for half in (timed[: len(timed) // 2], timed[len(timed) // 2 :])]
    before, after = (half[int(len(half) * 0.99)] if half else 0.0 for half in halves)
    if after > 2 * before + MAX_LAG / 6:
        faults.append(
            f"The lag grows: 99 of 100 within {before:.1f} s in the first half, and within {after:.1f} s in the second."
        )
    lags = sorted(lag for _end, lag in timed)
    lags, took = lags or [0.0], sorted(end - start for start, end in revoked.values())
    if lags[-1] > MAX_LAG:
        faults.append(f"A server lagged {lags[-1]:.1f} s. The limit is {MAX_LAG:g} s.")
    grown = {name: memory.most(name) for name in ("worker", "hub", "beat")}
    faults += [
        f"A process ({name}) grew by {size:.0f} MiB. The limit is {MAX_GROWTH:g} MiB."
        for name, size in grown.items()
        if size > MAX_GROWTH
    ]
    calls, failures = sum(one.calls for one in found), sum(one.failures for one in found)
    seconds = max(end for _, end in revoked.values()) - min(start for start, _ in revoked.values())
    print(
        f"{len(revoked)} revocations ({len(revoked) / seconds:.1f} a second), {len(found)} servers, {calls} calls, {failures} of them failed, ",
        end="",
    )
    print(f"{sum(one.lists for one in found)} signed lists, {killed} workers killed.")
    print(f"Lag: median {lags[len(lags) // 2]:.2f} s, 99 of 100 within {lags[int(len(lags) * 0.99)]:.2f} s, ", end="")
    print(f"longest {lags[-1]:.2f} s. The rest took {rest:.2f} s.")
    print(f"Revoking took {took[len(took) // 2]:.2f} s (median), at most {took[-1]:.2f} s.")
    print("Growth after warming up:", ", ".join(f"{name} {size:.1f} MiB" for name, size in grown.items()), end=".\n")
    print(*(faults or ["Nothing was lost."]), sep="\n")
    return len(faults)


def main() -> int:
    """Run what the options say."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long devices are revoked (default: 300)")
    parser.add_argument("--servers", type=int, default=20, help="number of servers (default: 20)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends, too
    return min(1, run(options.seconds, options.servers))


if __name__ == "__main__":
    sys.exit(main())
