"""One POST within a time limit, whatever the other end does: it may hang, or send one byte a second.

httpx limits each single read and write, but not the whole. So the requests of a process run in the event loop of one thread, where a whole
request can be cancelled, with one client that keeps its connections.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, TypeVar

import httpx

T = TypeVar("T")

CONNECT_SECONDS: Final = 1.0
TOTAL_SECONDS = 3.0
#: Largest answer, in bytes.
MAX_ANSWER_BYTES: Final = 256 * 1024


class NoAnswer(Exception):
    """No complete answer arrived in time. The text is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it arrived.

    Attributes:
        status: HTTP status. A redirect is not followed.
        headers: its headers, with names in lower case.
        body: its body, not decoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Poster:
    """The event loop of this process for requests, and its client."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="amesh-post", daemon=True).start()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the whole request has a limit of its own
            follow_redirects=False,
            # A server must not be able to give us cookies: they would be sent to others of its domain, and make their requests too large.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def post(self, url: str, body: bytes, headers: Mapping[str, str], seconds: float, max_bytes: int) -> Answer:
        return self._wait(self._post(url, body, headers, seconds, max_bytes), seconds)

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds + 1)
        except FutureTimeout:
            future.cancel()
            raise NoAnswer(f"The server did not answer within {seconds:g} seconds.") from None

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str], seconds: float, max_bytes: int) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                async with self._client.stream("POST", url, content=body, headers=dict(headers)) as response:
                    found = b""
                    async for part in response.aiter_raw():
                        found += part
                        if len(found) > max_bytes:
                            raise NoAnswer(f"The answer is larger than {max_bytes // 1024} KiB, so it was not read.")
                    return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, found)
        except TimeoutError:
            raise NoAnswer(f"The server did not answer within {seconds:g} seconds.") from None
        except httpx.ConnectTimeout:
            raise NoAnswer(f"The server could not be reached within {CONNECT_SECONDS:g} second.") from None
        except httpx.ConnectError as error:
            raise NoAnswer(f"The server could not be reached: {error}") from None
        except httpx.HTTPError as error:
            raise NoAnswer(f"The connection to the server broke ({type(error).__name__}).") from None


_poster: _Poster | None = None
_lock = threading.Lock()


def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    seconds: float | None = None,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Answer:
    """Send a POST, and return the answer.

    Args:
        url: the address.
        body: the body.
        headers: the headers.
        seconds: time for all of it. Defaults to :data:`TOTAL_SECONDS`.
        max_bytes: size of the largest answer.

    Raises:
        NoAnswer: there was none, or not all of it.
    """
    global _poster
    with _lock:
        if _poster is None:
            _poster = _Poster()
        poster = _poster
    return poster.post(url, body, {**headers, "Accept-Encoding": "identity"}, seconds or TOTAL_SECONDS, max_bytes)


def _after_fork() -> None:
    global _poster, _lock
    _poster, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
