"""An HTTP server that keeps requests as they arrived, and verifies their signatures."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from authmesh.protocol import SCHEMES, Authorization, b64url_decode, decode_public_key, parse_authorization
from authmesh.protocol import verify_signature as verify


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def signed(self) -> bool:
        return self.header("Authorization") is not None

    @property
    def authorization(self) -> Authorization:
        value = self.header("Authorization")
        assert value is not None, f"{self.method} {self.target} came without a signature"
        return parse_authorization(value)

    @property
    def public_key(self) -> bytes:
        return decode_public_key(self.authorization.id)

    def genuine(self, target: str | None = None) -> bool:
        """Return True if the signature is valid for the request that arrived, and its timestamp is recent."""
        members = self.authorization
        message = SCHEMES[members.v].signed_message(
            method=self.method,
            target=target or self.target,
            timestamp=members.ts,
            nonce=members.nonce,
            body_hash=hashlib.sha256(self.body).hexdigest(),
        )
        fresh = abs(int(members.ts) - time.time()) < 30
        return fresh and verify(self.public_key, message, b64url_decode(members.sig))


@dataclass
class Recorder:
    """The requests that the server received, and its redirects."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    redirects: dict[str, tuple[int, str]] = field(default_factory=dict)

    def record(self, seen: Seen) -> tuple[int, str]:
        """Keep a request. Return the status of the answer and its Location, or an empty one."""
        self.seen.append(seen)
        return self.redirects.get(seen.target.partition("?")[0], (200, ""))

    @property
    def last(self) -> Seen:
        return self.seen[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing on stderr."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self) -> None:
        target = self.raw_requestline.split(b" ")[1].decode("latin-1")  # self.path is normalized
        seen = Seen(self.command, target, self.headers.items(), self._body())
        status, location = self.server.recorder.record(seen)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if location:
            self.send_header("Location", location)
        self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = answer


class _Server(ThreadingHTTPServer):
    recorder: Recorder


@contextmanager
def recording() -> Iterator[Recorder]:
    """Run a recorder on a free port."""
    recorder = Recorder()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.recorder = recorder
        recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
