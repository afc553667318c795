"""Section 2: whole requests under gunicorn, the same view open and behind each way of authentication."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from tests.bench.figures import Row, Section, Target, interleave, ratio
from tests.bench.signing import BODY, METHOD, TARGET, KeyPair, read_signers, signed
from tests.bench.world import World
from tests.support.services import HOST, gunicorn, serve

#: Path → what stands in the table.
PEERS = {
    "open": "open",
    "token": "REST framework TokenAuthentication",
    "jwt": "simplejwt, ES256",
    "api-key": "djangorestframework-api-key",
    "amesh": "amesh",
}
WORKERS = (1, 2)
#: Connections at a time, for each worker of gunicorn.
CONNECTIONS = 2


def _request(peer: str, headers: Mapping[str, str]) -> bytes:
    lines = {
        "Host": HOST,
        "Content-Type": "application/json",
        "Content-Length": str(len(BODY)),
        "Connection": "close",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{METHOD} {TARGET.replace('/amesh/', f'/{peer}/')} HTTP/1.1\r\n{head}\r\n".encode("ascii") + BODY


def _exchange(port: int, requests: Sequence[bytes]) -> None:
    for request in requests:
        with socket.create_connection((HOST, port)) as connection:
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"The server under measurement answered:\n{answer.decode('utf-8', 'replace')}")


def per_second(port: int, requests: Sequence[bytes], connections: int) -> float:
    """Send all requests, that many at a time, and return how many were answered in a second."""
    failures: list[BaseException] = []

    def exchange(part: Sequence[bytes]) -> None:
        try:
            _exchange(port, part)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=exchange, args=(requests[n::connections],)) for n in range(connections)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - start
    if failures:
        raise failures[0]
    return len(requests) / passed


class _Peer:
    """One path of the server under measurement: each call is a round, its requests made before the clock starts."""

    def __init__(self, name: str, headers: Mapping[str, str], signers: Sequence[KeyPair]) -> None:
        self._name, self._headers, self._signers = name, headers, signers

    def round(self, port: int, count: int, connections: int) -> float:
        if self._name == "amesh":
            requests = [_request(self._name, {"Authorization": made.header}) for made in signed(self._signers, count)]
        else:
            requests = [_request(self._name, self._headers)] * count
        return per_second(port, requests, connections)


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    scale, size = world.scale, world.scale.sizes[-1]
    worker = world.worker("postgresql", size)
    credentials: dict[str, dict[str, str]] = {**worker.call("credentials"), "amesh": {}}
    peers = {name: _Peer(name, credentials[name], read_signers(world.signers, 10)) for name in PEERS}
    section = Section(
        "requests",
        "Whole requests under gunicorn",
        f"The same REST framework view (a POST of 80 bytes of JSON), PostgreSQL with persistent connections, {size:,} devices,\n"
        "nonces in Redis; gunicorn's default (sync) workers, a connection for each request, two at a time for each worker.\n"
        "Server, databases and load share this machine.",
        "÷ Token",
    )
    for workers in WORKERS:
        with ExitStack() as stack:
            server = stack.enter_context(
                serve(gunicorn("tests.wsgi:application", workers), world.environment("postgresql", size))
            )
            for peer in peers.values():  # every worker has imported all, and has verified its list
                peer.round(server.port, 20 * workers, CONNECTIONS * workers)
            say(f"requests: {workers} worker(s), {scale.servings} rounds")
            samples = interleave(
                scale.servings,
                {
                    name: functools.partial(peer.round, server.port, scale.served, CONNECTIONS * workers)
                    for name, peer in peers.items()
                },
            )
        for name, title in PEERS.items():
            note = f"{workers} worker" + ("s" if workers > 1 else "")
            section.rows.append(Row(title, "requests/s", samples[name], ratio(samples[name], samples["token"]), note))
        behind = ratio(samples["token"], samples["amesh"])
        section.targets.append(Target(f"TokenAuthentication ÷ amesh, {workers} worker(s)", behind, 1.0, "×"))
    for name, title in PEERS.items():
        counted = worker.call("statements", peer=name, headers=credentials[name], count=scale.batch)
        note = "one read; the rest is last seen, once a minute and device" if name == "amesh" and counted > 1 else ""
        section.rows.append(Row(title, "statements a request", note=note, count=f"{counted:g}"))
    return section
