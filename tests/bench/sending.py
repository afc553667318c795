"""Section 4: the client. Signed httpx requests beside unsigned ones."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx

from authmesh.client import AmeshAuth
from authmesh.device import LocalDevice
from tests.bench.figures import Row, Section, Target, interleave, ratio
from tests.bench.signing import BODY, TARGET
from tests.bench.world import World
from tests.support.services import HOST, serve

LIMIT_MICROSECONDS = 100.0
ROUNDS = 30

_SERVER = """
import asyncio, sys

class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok" * data.count(b"POST /"))

async def main():
    server = await asyncio.get_running_loop().create_server(Answer, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()

asyncio.run(main())
"""


def _each(client: httpx.Client, url: str, count: int) -> float:
    """The median of *count* requests, microseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        client.post(url, content=BODY)
        times.append((time.perf_counter_ns() - start) / 1000)
    return statistics.median(times)


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    say("client")
    device = LocalDevice(world.directory("sqlite", world.scale.sizes[0]))
    rounds = min(ROUNDS, world.scale.rounds)
    section = Section(
        "client",
        "The client",
        "httpx.Client, a POST with a body of 80 bytes; the key is unlocked once, before.",
        "÷ unsigned",
    )
    with ExitStack() as stack:
        server = stack.enter_context(serve([sys.executable, "-c", _SERVER, HOST, "{port}"]))
        for title, transport, origin in (
            ("no network (MockTransport)", httpx.MockTransport(lambda request: httpx.Response(200)), f"http://{HOST}"),
            ("a server on this machine", None, server.url),
        ):
            clients = {
                "unsigned": stack.enter_context(httpx.Client(transport=transport)),
                "signed": stack.enter_context(httpx.Client(transport=transport, auth=AmeshAuth(device))),
            }
            for client in clients.values():
                _each(client, origin + TARGET, 10)
            samples = interleave(
                rounds,
                {
                    name: functools.partial(_each, client, origin + TARGET, world.scale.sent)
                    for name, client in clients.items()
                },
            )
            for name, found in samples.items():
                section.rows.append(Row(name, "µs", found, ratio(found, samples["unsigned"]), title))
            more = [signed - plain for signed, plain in zip(samples["signed"], samples["unsigned"], strict=True)]
            section.rows.append(Row("  signed, more than unsigned", "µs", more, note=title))
            section.targets.append(
                Target(f"signing, {title}", statistics.median(more), LIMIT_MICROSECONDS, "µs more a request")
            )
    return section
