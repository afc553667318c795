"""Helpers of the relay's tests: a relay in this process whose clock they control, and relays as real processes."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import websockets
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from websockets.asyncio.client import ClientConnection, connect

from amesh_django.relay.conf import RelaySettings
from amesh_django.relay.exchange.base import Exchange
from amesh_django.relay.exchange.memory import MemoryExchange
from amesh_django.relay.hub.current import make_hub, set_hub, stop_hub
from amesh_django.relay.hub.hub import Hub
from amesh_django.relay.routing import websocket_urlpatterns
from tests.support import services

OTC = "482916"
JTI = "bt_" + "0" * 32
#: What is waited for comes at once, or a moment later on a machine that has much else to do. Only a failure takes so long.
PATIENCE = 60.0


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 4 * PATIENCE))  # type: ignore[arg-type]

    return run


class Clock:
    """A clock that a test controls."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """A connection to the relay of this process."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator

    async def send(self, kind: str, **members: Any) -> None:
        await self.send_text(json.dumps({"type": kind, **members}))

    async def send_text(self, text: str) -> None:
        await self._communicator.send_input({"type": "websocket.receive", "text": text})
        await settle()

    async def send_bytes(self, data: bytes) -> None:
        await self._communicator.send_input({"type": "websocket.receive", "bytes": data})
        await settle()

    async def output(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._communicator.receive_output(PATIENCE)
        return message

    async def receive(self) -> dict[str, Any]:
        message = await self.output()
        assert message["type"] == "websocket.send", message
        received: dict[str, Any] = json.loads(message["text"])
        return received

    async def error(self) -> str:
        """Return the code of the next message, which must be an error."""
        received = await self.receive()
        assert received.pop("type") == "error"
        code: str = received.pop("code")
        assert not received
        return code

    async def closed(self) -> int:
        """Return the code with which the connection is closed next."""
        message = await self.output()
        assert message["type"] == "websocket.close", message
        code: int = message["code"]
        return code

    async def hears_nothing(self) -> bool:
        await settle()
        return bool(self._communicator.output_queue.empty())

    async def leave(self) -> None:
        await self._communicator.send_input({"type": "websocket.disconnect", "code": 1000})
        await self._communicator.wait(PATIENCE)
        await settle()


async def until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until *true* returns True."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


async def settle() -> None:
    """Run all tasks until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


class Relay:
    """A relay in this process."""

    def __init__(self, settings: RelaySettings, exchange: Exchange | None, clock: Clock) -> None:
        self.clock = clock
        self.hub: Hub = make_hub(settings, exchange or MemoryExchange(settings, clock), clock)
        self._clients: list[Client] = []

    async def client(self, ip: str = "192.0.2.1", headers: list[tuple[bytes, bytes]] | None = None) -> Client:
        communicator: Any = WebsocketCommunicator(URLRouter(websocket_urlpatterns), "/ws", headers=headers)
        communicator.scope["client"] = (ip, 50000)
        accepted, _ = await communicator.connect(PATIENCE)
        assert accepted
        client = Client(communicator)
        self._clients.append(client)
        await settle()
        return client

    async def pair(self, otc: str = OTC) -> tuple[Client, Client]:
        """Return a target and a controller that are matched."""
        target, controller = await self.client("192.0.2.10"), await self.client("192.0.2.20")
        await target.send("listen", otc=otc)
        assert await target.receive() == {"type": "ack", "message": "session_open"}
        await controller.send("connect", otc=otc)
        assert await controller.receive() == {"type": "peer_found"}
        assert await target.receive() == {"type": "peer_found"}
        return target, controller

    async def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds
        await self.hub.sweep()
        await settle()

    async def sessions(self) -> int:
        return await self.hub.exchange.sessions()


@asynccontextmanager
async def relay(**settings: Any) -> AsyncIterator[Relay]:
    """Run a relay in this process, in memory."""
    world = Relay(RelaySettings(**settings), None, Clock())
    set_hub(world.hub)
    try:
        yield world
    finally:
        for client in world._clients:
            if not client._communicator.future.done():
                await client.leave()
        assert not world.hub.sockets
        assert world.hub._budget.used == 0
        assert not world.hub._per_address
        assert await world.sessions() == 0
        await stop_hub()


# --- relays as processes ----------------------------------------------------------------------------------------------


#: ``manage.py`` with another time for a request to arrive.
_IN_HASTE = "import manage; from amesh_django.relay import server; server._REQUEST_SECONDS = %d; manage.main()"


@contextmanager
def serving(
    folder: Path,
    redis: str = "",
    arguments: tuple[str, ...] = (),
    request_seconds: int | None = None,
    **variables: object,
) -> Iterator[services.Server]:
    """Run ``manage.py amesh_relay``. Limits that are not given are raised so that no test reaches them.

    Args:
        request_seconds: the time for a request to arrive, instead of that in `server.py`, for which there is no setting.
    """
    raised = {
        "TRIES_PER_MINUTE": 1_000_000,
        "WATCHES_PER_MINUTE": 1_000_000,
        "TOKENS_PER_MINUTE": 1_000_000,
        "SESSIONS_PER_NETWORK": 1_000_000,
        "CONNECTIONS_PER_ADDRESS": 0,
    }
    limits = {f"AMESH_RELAY_{name}": value for name, value in raised.items()}
    named = {
        name if name.isupper() and name.startswith("AMESH") else f"AMESH_RELAY_{name}": v
        for name, v in variables.items()
    }
    env = {
        "DJANGO_DATA_DIR": str(folder / "data"),
        "DJANGO_SETTINGS_MODULE": "relay_project.settings",
        "REDIS_URL": redis,
        "PYTHONWARNINGS": "error",
        **{name: str(value) for name, value in (limits | named).items()},
    }
    start = ["manage.py"] if request_seconds is None else ["-c", _IN_HASTE % request_seconds]
    command = [sys.executable, *start, "amesh_relay", "--port", "{port}", *arguments]
    with services.serve(command, env=env) as server:
        yield server


def address(server: services.Server) -> str:
    return f"ws://{services.HOST}:{server.port}/ws"


class Raw:
    """A connection to a relay in a process of its own."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **members: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **members}))

    async def receive(self, seconds: float = PATIENCE) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            received: dict[str, Any] = json.loads(await self.connection.recv())
        return received

    async def error(self, seconds: float = PATIENCE) -> str:
        received = await self.receive(seconds)
        assert received["type"] == "error", received
        code: str = received["code"]
        return code

    async def closed(self, seconds: float = PATIENCE) -> int:
        """Return the code with which the connection is closed. Messages before that are skipped."""
        async with asyncio.timeout(seconds):
            await self.connection.wait_closed()
        return self.connection.close_code or 0

    async def leave(self) -> None:
        await self.connection.close()


@asynccontextmanager
async def dialled(server: services.Server, count: int = 1, **options: Any) -> AsyncIterator[list[Raw]]:
    """Connect *count* times."""
    options = {"compression": None, "user_agent_header": None, "close_timeout": 2, "open_timeout": PATIENCE, **options}
    connections: list[ClientConnection] = []
    try:
        for _ in range(count):
            connections.append(await connect(address(server), **options))
        yield [Raw(connection) for connection in connections]
    finally:
        await asyncio.gather(*(connection.close() for connection in connections), return_exceptions=True)


async def match(target: Raw, controller: Raw, otc: str = OTC) -> None:
    await target.send("listen", otc=otc)
    assert await target.receive() == {"type": "ack", "message": "session_open"}
    await controller.send("connect", otc=otc)
    assert await controller.receive() == {"type": "peer_found"}
    assert await target.receive() == {"type": "peer_found"}


async def converse(target: Raw, controller: Raw, otc: str, *, count: int = 3) -> None:
    """Go through a whole pairing."""
    await match(target, controller, otc)
    for number in range(count):
        await target.send("data", payload=f"t{number}")
        assert await controller.receive() == {"type": "data", "payload": f"t{number}"}
        await controller.send("data", payload=f"c{number}")
        assert await target.receive() == {"type": "data", "payload": f"c{number}"}
    await controller.send("done")
    assert await target.receive() == {"type": "done"}


def memory(server: services.Server) -> float:
    """Return the memory of a process in MB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


ConnectionClosed = websockets.exceptions.ConnectionClosed
