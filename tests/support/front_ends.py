"""Helpers for the tests of both front ends: devices, lines of export-key, a server, `amesh` in this process."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.commands import app
from authmesh.protocol.key_line import build_key_line

#: Both front ends as programs, to be the parameters of a fixture. One pair of versions is enough for `amesh`: on the other one,
#: test_cli.py runs it in its process, and `manage.py` runs the same commands as programs.
FRONT_ENDS = (pytest.param("amesh", marks=pytest.mark.unversioned), "manage.py")

HOSTILE = "\x1b[2Jbad\x07\u202ename\nError: forged\x9b31m [bold]x[/bold]"
HOSTILE_SHOWN = "badname Error: forged [bold]x[/bold]"


def line_of(device: EphemeralDevice) -> str:
    """Return the line that export-key prints on that device."""
    return build_key_line(device.identity.public_key, device.identity.friendly_name)


def id_of(device: EphemeralDevice) -> str:
    return device.identity.device_id


@dataclass
class Answering:
    """A server that keeps the last request and returns a given answer."""

    url: str = ""
    status: int = 200
    body: bytes = b"hello"
    #: Where it redirects to, by path; other paths get the answer.
    redirects: dict[str, str] = field(default_factory=dict)
    method: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    received: bytes = b""
    #: Set once a request is there; while `delay` is cleared it gets no answer.
    asked: threading.Event = field(default_factory=threading.Event)
    delay: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.delay.set()


class _Server(ThreadingHTTPServer):
    answering: Answering


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing on stderr."""

    def answer(self) -> None:
        answering = self.server.answering
        answering.method, answering.headers = self.command, {k.lower(): v for k, v in self.headers.items()}
        answering.received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answering.asked.set()
        answering.delay.wait()
        with suppress(ConnectionError):
            to = answering.redirects.get(self.path)
            self.send_response(answering.status if to is None else 302)
            if to is not None:
                self.send_header("Location", to)
            self.send_header("Content-Length", str(len(answering.body)))
            self.end_headers()
            self.wfile.write(answering.body)

    do_GET = do_POST = do_PUT = do_DELETE = answer


@contextmanager
def answering() -> Iterator[Answering]:
    """Run a server on a free port."""
    state = Answering()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.answering = state
        state.url = f"http://127.0.0.1:{server.server_address[1]}/path?b=2&a=1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Result:
    """The result of a command line of `amesh`.

    Attributes:
        exit_code: its exit code.
        stdout_bytes: all that it wrote to stdout.
        stderr: all that it wrote to stderr.
    """

    exit_code: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode()

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(words: Sequence[str | Path], given: str | bytes = "", **env: str) -> Result:
    """Run a command line of `amesh` in this process, with that standard input."""
    stdin = io.BytesIO(given.encode() if isinstance(given, str) else given)
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in (("stdin", stdin), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
        for name, value in env.items():
            patch.setenv(name, value)
        code = app.run([str(word) for word in words])
        return Result(code, out.getvalue(), err.getvalue().decode())
