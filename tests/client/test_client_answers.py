"""Small requests whose server does not answer, or does not come to an end: what the error says about them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from authmesh.client import answers
from authmesh.protocol.enrollment_errors import ServerUnreachable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
Serve = Callable[[Callable[[socket.socket], None]], str]


def ask(url: str) -> object:
    return answers.read_answer("POST", url, json={}, timeout=5)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Run a server that answers one connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(answer: Callable[[socket.socket], None]) -> str:
        def run() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                with contextlib.suppress(OSError):  # the client has left
                    answer(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/amesh/enroll"

    yield start
    for thread in threads:
        thread.join()
    listener.close()


def drip(*parts: bytes) -> Callable[[socket.socket], None]:
    """Return what sends the first part, and then a byte of the second one now and then."""

    def answer(connection: socket.socket) -> None:
        first, rest = parts
        connection.sendall(first)
        for number in range(len(rest)):
            connection.sendall(rest[number : number + 1])
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize("parts", [(b"", HEAD * 9), (HEAD, b" " * 500)], ids=["headers", "body"])
def test_an_answer_must_come_to_an_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, bytes]
) -> None:
    monkeypatch.setattr(answers, "TOTAL_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="It is not known whether the server has carried out the request"):
        ask(serve(drip(*parts)))
    assert time.monotonic() - began < 3


def test_a_request_that_was_sent_may_have_been_carried_out(serve: Serve) -> None:
    with pytest.raises(ServerUnreachable) as caught:
        ask(serve(lambda connection: None))
    assert "It is not known whether" in caught.value.message and "same key" in str(caught.value)


def test_a_request_that_was_not_sent_was_not_carried_out() -> None:
    with pytest.raises(ServerUnreachable, match=r"cannot be reached .*Nothing was sent"):
        ask("http://127.0.0.1:9/amesh/enroll")


def test_it_works_inside_an_event_loop(serve: Serve) -> None:
    async def call() -> object:
        return ask(serve(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")))

    assert asyncio.run(call()) == {}
