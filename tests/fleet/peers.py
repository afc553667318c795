"""The other end of a delivery for the tests: an HTTP server in a thread that knows the protocol, and can break it in every way."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from amesh_django.test import EphemeralDevice
from authmesh.protocol.encoding import b64decode_any
from authmesh.protocol.fleet.feed import Acknowledgement, FeedMessage, Refused
from authmesh.protocol.header import parse_authorization
from authmesh.protocol.keys import decode_public_key, verify_signature
from authmesh.protocol.schemes.registry import SCHEMES

#: Status, JSON value or bytes, and headers.
Reply = tuple[int, Any, dict[str, str]]


@dataclass
class Peer:
    """A server that follows a hub.

    Attributes:
        device: its identity.
        messages: what it was sent, with the nonces of the requests.
        epoch, applied: what it has.
        refuses: why it refuses each event, or an empty text.
        behave: replaces its answer; called with the message and the proper answer.
    """

    device: EphemeralDevice = field(default_factory=lambda: EphemeralDevice("server"))
    port: int = 0
    messages: list[FeedMessage] = field(default_factory=list)
    nonces: list[str] = field(default_factory=list)
    epoch: str = ""
    applied: int = 0
    refuses: str = ""
    behave: Callable[[FeedMessage, Reply], Reply | None] = lambda message, reply: reply
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/amesh/"

    def told(self) -> list[tuple[str, str]]:
        return [(event.event, event.device_id) for message in self.messages for event in message.events]

    def receive(self, message: FeedMessage, nonce: str) -> Reply:
        """Apply a message, and return the answer."""
        status, needs = 200, False
        if message.epoch != self.epoch and not message.revocations:
            status, needs = 409, True
        elif message.epoch == self.epoch and message.after > self.applied:
            status = 409
        elif message.epoch != self.epoch or message.until > self.applied:
            self.epoch, self.applied = message.epoch, message.until
        refused = [Refused(event.serial, event.device_id, self.refuses) for event in message.events if self.refuses]
        return status, self.acknowledge(message, nonce, refused=refused, needs=needs), {}

    def acknowledge(
        self,
        message: FeedMessage,
        nonce: str,
        *,
        refused: Any = (),
        needs: bool = False,
        by: EphemeralDevice | None = None,
    ) -> Any:
        """A signed answer about what the server has."""
        return Acknowledgement(self.epoch, self.applied, tuple(refused), needs).to_json(
            issuer=message.issuer, audience=message.audience, nonce=nonce, sign=(by or self.device).sign
        )


def _handler(peer: Peer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = parse_authorization(self.headers["Authorization"])
            key = decode_public_key(found.id)
            signed = SCHEMES[found.v].signed_message(
                method="POST",
                target=self.path,
                timestamp=found.ts,
                nonce=found.nonce,
                body_hash=hashlib.sha256(body).hexdigest(),
            )
            assert verify_signature(key, signed, b64decode_any(found.sig)) and self.path == "/amesh/feed"
            message = FeedMessage.from_json(json.loads(body))
            assert message.audience == peer.device.identity.device_id
            with peer.lock:
                peer.messages.append(message)
                peer.nonces.append(found.nonce)
                reply = peer.behave(message, peer.receive(message, found.nonce))
            if reply is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, value, headers = reply
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@contextmanager
def peer(**options: Any) -> Iterator[Peer]:
    """Run a server inside the block."""
    found = Peer(**options)
    server = _Quiet(("127.0.0.1", 0), _handler(found))
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


class Clock:
    """A clock that only a test moves. Called, it returns Unix seconds."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now
