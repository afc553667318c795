"""`amesh fetch` with a server that sends no usable answer: what happened, whether the request was sent, and what to do."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amesh_django.test.devices import EphemeralDevice
from authmesh.client import fetching
from tests.support.front_ends import Result, answering, invoke

pytestmark = pytest.mark.usefixtures("directory")

SENT = "The request was sent, so the server may have carried it out."
OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EphemeralDevice("laptop").write(tmp_path / "amesh")
    monkeypatch.setenv("AMESH_DIR", str(tmp_path / "amesh"))


def fetch(*words: str) -> Result:
    return invoke(["fetch", *words])


@contextmanager
def sending(answer: bytes | None) -> Iterator[str]:
    """Serve these bytes to each connection, or reset it; yield the address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            if answer is None:  # without time to linger, the kernel resets the connection
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            else:
                self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x00\x01garbage\r\n\r\n", "did not send a valid HTTP response (illegal status line)."),
        (None, ""),  # how the connection ends depends on which side is faster
        (b"", "did not send a valid HTTP response (Server disconnected without sending a response)."),
        (OK + b"9\r\n\r\nabc", "did not send a valid HTTP response (peer closed connection"),
        (OK + b"3\r\nContent-Encoding: gzip\r\n\r\nabc", "did not send a valid HTTP response (Error -3"),
        (redirect("javascript:alert(1)"), "redirects to an address that is not valid"),
        (redirect("http://[::1"), "did not send a valid HTTP response (Invalid URL in location header"),
    ],
)
def test_an_answer_that_is_not_valid(answer: bytes | None, text: str) -> None:
    with sending(answer) as url:
        done = fetch(url, "-d", "x")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"127.0.0.1 {text}" in done.stderr
    assert SENT in done.stderr and "bytearray" not in done.stderr


def test_a_redirect_to_a_server_that_is_not_there() -> None:
    with sending(redirect("http://127.0.0.1:1/x")) as url:
        done = fetch(url, "-L")
    assert "Nothing listens at 127.0.0.1, port 1. The request before the redirect to 127.0.0.1 was sent." in done.stderr


def test_a_redirect_away_from_http() -> None:
    with sending(redirect("ftp://files.example/x")) as url:
        assert "redirects to ftp://files.example/x, which is not an address of http" in fetch(url, "-L").stderr
        meaning = json.loads(fetch(url, "--json").stdout)["meaning"]
    assert "which is not an address of http or https" in meaning and "-L" not in meaning


def test_redirects_in_a_circle() -> None:
    with sending(redirect("/")) as url:
        assert f"127.0.0.1 redirects too often. {SENT}" in fetch(url, "-L").stderr


def test_a_certificate_file_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    fetching._tls.cache_clear()
    assert "that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read" in fetch("https://127.0.0.1:1/").stderr


def test_a_status_that_fails_says_where_to_look() -> None:
    with answering() as server:
        server.status = 404
        done = fetch(server.url, "--fail")
    assert (done.exit_code, done.stdout) == (22, "hello")
    assert "The body of the response may say why." in done.stderr
