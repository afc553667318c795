"""Section 6: the relay alone. Two raw sockets, match, six forwarded messages, done; and what connections that say nothing cost."""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.bench.figures import Row, Section, Target, ratio
from tests.bench.relay_load import UPGRADE
from tests.bench.world import World
from tests.relay.relay_world import memory, serving
from tests.support import services
from tests.support.services import ROOT

#: Pairings a second that one process has to reach, and how many times as many two.
LEAST = 500.0
TIMES = 1.6
CONNECTIONS = 5_000
LIMIT_MB = 300.0
#: Pairings at a time, for each relay process.
AT_A_TIME = 64
ROUNDS = 10
#: Out of the way: each code is used many times here.
_LIMITS = {"TRIES_PER_CODE": 1_000_000, "MAX_ERRORS": 1_000_000}


class Load:
    """The process that pairs; see :mod:`.relay_load`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.relay_load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, servers: Sequence[services.Server], fresh: bool, count: int) -> dict[str, float]:
        """So many pairings over these processes of one relay."""
        assert self._process.stdin is not None and self._process.stdout is not None
        ports = [server.port for server in servers]
        order: dict[str, Any] = {"ports": ports, "pairs": AT_A_TIME * len(ports), "fresh": fresh, "count": count}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The load has ended; what it said stands above.")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def processor_seconds(server: services.Server) -> float:
    """That a process has used so far."""
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/stat") as file:
        numbers = file.read().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Setup:
    """One way to run a relay, and what was measured of it, for each round."""

    name: str
    servers: Sequence[services.Server]
    fresh: bool
    rate: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    def round(self, load: Load, count: int) -> None:
        before = sum(map(processor_seconds, self.servers))
        answer = load.run(self.servers, self.fresh, count)
        self.rate.append(count / answer["seconds"])
        self.used.append((sum(map(processor_seconds, self.servers)) - before) / count * 1000)


def _idle(world: World, section: Section) -> None:
    """What many connections cost that say nothing."""
    count = min(CONNECTIONS, 250 * world.scale.rounds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: list[socket.socket] = []
    try:
        with serving(world.folder) as server:
            before = memory(server)
            for _ in range(count):
                sock = socket.create_connection((services.HOST, server.port))
                sock.sendall(UPGRADE)
                connections.append(sock)
                assert b" 101 " in sock.recv(4096)
            after = memory(server)
    finally:
        for sock in connections:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    section.rows += [
        Row("memory of a process", "MB", count=f"{before:.0f}", note="nobody is connected"),
        Row("memory of a process", "MB", count=f"{after:.0f}", note=f"{count:,} connections that say nothing"),
        Row("  of it: a connection", "KB", count=f"{(after - before) * 1024 / count:.1f}"),
    ]
    section.targets.append(Target(f"memory with {count:,} idle connections", after, LIMIT_MB, "MB"))


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    rounds, count = min(ROUNDS, world.scale.rounds), 50 * min(20, world.scale.rounds)
    section = Section(
        "relay",
        "The relay alone",
        "Two new raw sockets, match, six forwarded messages of 200 bytes, done; limits raised, 64 pairings at a time for each\n"
        "process. Of the pairings over two processes, half have both sides at one of them, as behind a load balancer. Relays, Redis\n"
        "and load share the processors of this machine, so beside the rate stands what the relays alone used of them.",
        "÷ one",
    )
    with ExitStack() as stack:
        alone = stack.enter_context(serving(world.folder, **_LIMITS))
        two = [stack.enter_context(serving(world.folder, world.redis.url, **_LIMITS)) for _ in range(2)]
        load = stack.enter_context(Load())
        one = Setup("one process, in memory", [alone], True)
        both = Setup("two processes, Redis", two, True)
        stays = Setup("one process, in memory", [alone], False)
        setups = [one, both, stays]
        for setup in setups:
            load.run(setup.servers, setup.fresh, count // 4 + AT_A_TIME)
        for number in range(rounds):
            say(f"relay: {number + 1} of {rounds} rounds")
            for setup in setups[number % 3 :] + setups[: number % 3]:
                setup.round(load, count)
    gain = ratio(both.rate, one.rate)
    # What two processes would do if each had a processor to itself.
    capacity = ratio([2 / used for used in both.used], [1 / used for used in one.used])
    section.rows += [
        Row(one.name, "pairings/s", one.rate, 1.0),
        Row(both.name, "pairings/s", both.rate, gain),
        Row("  processor time, one", "ms/pairing", one.used),
        Row("  processor time, two", "ms/pairing", both.used, note=f"with a processor each: {capacity:.2f} × as many"),
        Row(stays.name, "pairings/s", stays.rate, ratio(stays.rate, one.rate), "connections that stay for the next"),
    ]
    section.targets += [
        Target("one process: time for each pairing", 1000 / statistics.median(one.rate), 1000 / LEAST, "ms"),
        Target(f"two processes with a processor each: {TIMES} ÷ gain", TIMES / capacity, 1.0, "×"),
    ]
    if (os.cpu_count() or 1) >= 4:  # fewer have no room for two relays, Redis and the load
        section.targets.append(Target(f"two processes as measured: {TIMES} ÷ gain", TIMES / gain, 1.0, "×"))
    say("relay: idle connections")
    _idle(world, section)
    return section
