"""The other end of `tests.bench.relay`: a process that pairs over relays as fast as they can, and costs little itself.

Plain sockets, one epoll, frames that are made ahead; what comes is compared byte by byte with what has to come.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import Any

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_HOST = "127.0.0.1"
#: About as long as the messages of a ceremony.
_PAYLOAD = "x" * 200
TARGET, CONTROLLER = 0, 1


def frame(text: str, mask: bool) -> bytes:
    """A text frame, as a client (masked, by zeros) or a server sends it."""
    data, bit = text.encode(), 0x80 if mask else 0
    head = bytes([0x81, bit | len(data)]) if len(data) < 126 else b"\x81" + bytes([bit | 126, *divmod(len(data), 256)])
    return head + (b"\0\0\0\0" if mask else b"") + data


_ACK = frame('{"type":"ack","message":"session_open"}', False)
_FOUND = frame('{"type":"peer_found"}', False)
_DATA = f'{{"type":"data","payload":"{_PAYLOAD}"}}'
_DONE = '{"type":"done"}'
_SAY, _HEAR = frame(_DATA, True), frame(_DATA, False)

#: After the code has been acknowledged, each step: what side sends what, and what each side has to get before the next one.
_STEPS = [
    *((TARGET, _SAY, {CONTROLLER: _HEAR}), (CONTROLLER, _SAY, {TARGET: _HEAR})) * 3,
    (CONTROLLER, frame(_DONE, True), {TARGET: frame(_DONE, False)}),
]


def _welcome(port: int) -> bytes:
    with socket.create_connection((_HOST, port)) as sock:
        sock.sendall(UPGRADE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
    assert b" 101 " in head and head.endswith(b"\r\n\r\n"), head
    return head


class Pair:
    """Two sockets that pair again and again.

    Args:
        number: of this pair; its codes are its own.
        ports: of the relays to which target and controller connect.
        fresh: whether each pairing has sockets of its own.
    """

    def __init__(self, load: Load, number: int, ports: tuple[int, int], fresh: bool) -> None:
        self._load = load
        self._number = number
        self._ports = ports
        self._fresh = fresh
        self._round = 0
        self._sockets: list[socket.socket] = []
        self._missing = [b"", b""]
        self._steps: list[tuple[int, bytes, dict[int, bytes]]] = []
        self._step = 0

    def begin(self) -> None:
        """The next pairing."""
        code = f"{100_000 + (self._number * 1000 + self._round % 1000) % 900_000}"
        self._round += 1
        self._steps = [
            (TARGET, frame(f'{{"type":"listen","otc":"{code}"}}', True), {TARGET: _ACK}),
            (CONTROLLER, frame(f'{{"type":"connect","otc":"{code}"}}', True), {TARGET: _FOUND, CONTROLLER: _FOUND}),
            *_STEPS,
        ]
        self._step = -1
        if self._fresh or not self._sockets:
            self._connect()
        else:
            self._go_on()

    def close(self) -> None:
        """End its connections."""
        for sock in self._sockets:
            self._load.forget(sock)
        self._sockets = []

    def _connect(self) -> None:
        self.close()
        for side in (TARGET, CONTROLLER):
            sock = socket.create_connection((_HOST, self._ports[side]))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(UPGRADE)
            self._sockets.append(sock)
            self._missing[side] = self._load.welcome
            self._load.add(sock, self, side)

    def _go_on(self) -> None:
        self._step += 1
        if self._step == len(self._steps):
            self._load.finished(self)
            return
        side, data, expected = self._steps[self._step]
        for other, text in expected.items():
            self._missing[other] = text
        self._sockets[side].sendall(data)

    def hear(self, side: int) -> None:
        """Something has come."""
        data = self._sockets[side].recv(65_536)
        if data[:1] == b"\x89":  # a ping
            data = data[2 + data[1] :]
            if not data:
                return
        missing = self._missing[side]
        if not data or not missing.startswith(data):
            raise SystemExit(f"The relay said {data!r}, not {missing!r}.")
        self._missing[side] = missing[len(data) :]
        if not any(self._missing):
            self._go_on()


class Load:
    """Pairs at work.

    Args:
        ports: of the processes of a relay. Pairs are spread as a load balancer spreads them: over all combinations.
        pairs: at a time.
        fresh: whether each pairing has sockets of its own.
    """

    def __init__(self, ports: list[int], pairs: int, fresh: bool) -> None:
        self._fresh = fresh
        self._epoll = select.epoll()
        self._places: dict[int, tuple[Pair, int]] = {}
        self._left = 0
        self._busy = 0
        #: What a relay says first; the same each time, for the key of the handshake is.
        self.welcome = _welcome(ports[0])
        self._pairs = [
            Pair(self, number, (ports[number % len(ports)], ports[number // len(ports) % len(ports)]), fresh)
            for number in range(pairs)
        ]

    def add(self, sock: socket.socket, pair: Pair, side: int) -> None:
        """Listen to it."""
        self._places[sock.fileno()] = (pair, side)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, sock: socket.socket) -> None:
        """Close it."""
        del self._places[sock.fileno()]
        self._epoll.unregister(sock.fileno())
        sock.close()

    def finished(self, pair: Pair) -> None:
        """One pairing is done."""
        self._busy -= 1
        if self._left:
            self._left -= 1
            self._busy += 1
            pair.begin()

    def run(self, count: int) -> dict[str, float]:
        """So many pairings. Seconds they took, and seconds of processor that this cost here.

        Connections that stay are made before that, and closed after it: pings are not answered here.
        """
        if not self._fresh:
            self._do(len(self._pairs))
        start, used = time.perf_counter(), time.process_time()
        self._do(count)
        answer = {"seconds": time.perf_counter() - start, "used": time.process_time() - used}
        for pair in self._pairs:
            pair.close()
        return answer

    def _do(self, count: int) -> None:
        self._left = count - min(count, len(self._pairs))
        self._busy = count - self._left
        for pair in self._pairs[: self._busy]:
            pair.begin()
        while self._busy:
            for number, _ in self._epoll.poll(30):
                pair, side = self._places.get(number, (None, 0))
                if pair is not None:
                    pair.hear(side)


def main() -> None:
    """Orders and answers are lines of JSON: `{"ports", "pairs", "fresh", "count"}`."""
    loads: dict[str, Load] = {}
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        count = order.pop("count")
        key = json.dumps(order)
        if key not in loads:
            loads[key] = Load(**order)
        print(json.dumps(loads[key].run(count)), flush=True)


if __name__ == "__main__":
    main()
