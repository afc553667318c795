"""Django's test clients, sync and async, which sign every request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from django.test import AsyncClient, Client
from django.test.client import FakePayload

from authmesh.client import Signer
from authmesh.client.signing import sign_request

from .devices import EphemeralDevice

__all__ = ["AmeshAsyncClient", "AmeshClient", "SignedRequests", "SignedWSGIRequests"]

#: Key that carries the path, as a real client sends it, from ``generic()`` to ``request()``: Django decodes its own.
_RAW_PATH = "amesh-raw-path"
_VISIBLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def _raw_path(path: Any) -> str:
    """Return the path as a client sends it: other characters than those of a path are percent-encoded."""
    return quote(urlsplit(str(path)).path, safe="/%:@!$&'()*+,;=~") or "/"


def _raw_query(query: str | bytes) -> str:
    return quote(query, safe=_VISIBLE_ASCII)


class SignedRequests:
    """The common part of all signed test clients: a mixin for a client class of Django or REST framework.

    Args:
        device: the device that signs. Defaults to a new one, which is not trusted.
        now: returns Unix seconds.

    Attributes:
        device: the device that signs.
    """

    def __init__(
        self, device: Signer | None = None, *args: Any, now: Callable[[], float] = time.time, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.device: Signer = device or EphemeralDevice()
        self._now = now

    def generic(self, method: str, path: Any, *args: Any, **extra: Any) -> Any:
        """Send a request, as Django's method does. A request with an Authorization header is sent unchanged."""
        return super().generic(method, path, *args, **{**extra, _RAW_PATH: _raw_path(path)})  # type: ignore[misc]

    def _authorization(self, method: str, target: str, body: bytes) -> str:
        return sign_request(
            self.device,
            method=method,
            target=target,
            body_hash=hashlib.sha256(body).hexdigest(),
            now=self._now(),
        )


class SignedWSGIRequests(SignedRequests):
    """The part of the signed clients that sends WSGI requests."""

    def request(self, **request: Any) -> Any:
        """Send a request, as Django's method does. The environment has ``RAW_URI``, which servers such as gunicorn set."""
        path = request.pop(_RAW_PATH, None)
        environ = self._base_environ(**request)  # type: ignore[attr-defined]
        query = _raw_query(environ.get("QUERY_STRING", "").encode("latin-1"))
        target = (path or quote(environ["PATH_INFO"].encode("latin-1"))) + (f"?{query}" if query else "")
        body = environ["wsgi.input"].read()
        request |= {"QUERY_STRING": query, "RAW_URI": target, "wsgi.input": FakePayload(body)}
        if "HTTP_AUTHORIZATION" not in environ:
            request["HTTP_AUTHORIZATION"] = self._authorization(environ["REQUEST_METHOD"], target, body)
        return super().request(**request)  # type: ignore[misc]


class AmeshClient(SignedWSGIRequests, Client):
    """``django.test.Client`` with every request signed: ``AmeshClient(device).post("/hook/", …)``."""


class AmeshAsyncClient(SignedRequests, AsyncClient):
    """``django.test.AsyncClient`` with every request signed: ``await AmeshAsyncClient(device).get("/")``."""

    async def request(self, **request: Any) -> Any:
        """Send a request, as Django's method does. The scope has ``raw_path``, which ASGI servers set."""
        carried = _RAW_PATH.encode()  # Django turns unknown keys into headers
        path = next(value for name, value in request["headers"] if name == carried).decode("ascii")
        headers = [pair for pair in request["headers"] if pair[0] != carried]
        query = _raw_query(request.get("query_string", ""))
        body = request["_body_file"].read() if "_body_file" in request else b""
        if not any(name == b"authorization" for name, _ in headers):
            target = path + (f"?{query}" if query else "")
            headers.append((b"authorization", self._authorization(request["method"], target, body).encode("ascii")))
        request |= {"headers": headers, "raw_path": path.encode("ascii"), "query_string": query.encode("ascii")}
        if body:
            request["_body_file"] = FakePayload(body)
        return await super().request(**request)
