"""AmeshRequestsAuth: signs what requests sends, and the redirects that it follows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.errors import InvalidInput

from .httpx_auth import Origin, may_sign
from .signing import PREFIX, Signer, default_device, sign_request
from .spool import CHUNK_BYTES

if TYPE_CHECKING:
    import requests

_PORTS = {"http": 80, "https": 443}


class AmeshRequestsAuth:
    """Signs what requests sends: ``requests.get(url, auth=AmeshRequestsAuth())``, or ``session.auth = …``.

    Each request has a signature of its own over exactly the method, target and body that go out. The body may be bytes, text, a
    form, JSON, or a file opened in binary mode, which is read twice. A generator is refused: it can be read but once.

    Redirects that requests follows are signed anew with a fresh nonce while they stay at the origin of the request (or move to
    https on the same host). A redirect to another origin is sent unsigned, and so is all that follows it.

    A prepared request is good for one ``session.send``; prepare it anew to send it again.

    Args:
        device: who signs; None is :func:`~authmesh.client.default_device`, looked up at the first request.
        now: returns Unix seconds.

    Raises:
        ImportError: requests is not installed.
    """

    def __init__(self, device: Signer | None = None, *, now: Callable[[], float] = time.time) -> None:
        try:
            import requests
        except ImportError:
            raise ImportError(
                "AmeshRequestsAuth needs requests. Install it: pip install 'amesh-django[requests]'"
            ) from None
        self._requests = requests
        self._device = device
        self._now = now

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign *request*; requests calls this when it has prepared it.

        Raises:
            InvalidInput: the body can't be read twice, or is a file in text mode.
            IdentityMissing, DirectoryError, KeyStoreError: the device can't be opened or its key can't be used.
        """
        if isinstance(request.body, str):  # as urllib3 encodes it, but known to us
            request.body = request.body.encode()
        body_hash = _hash_body(request.body)
        request.headers["Authorization"] = self._sign(request, body_hash)
        body = request.body

        def sign_redirect(response: requests.Response, **options: Any) -> None:
            if response.is_redirect and response.request.headers.get("Authorization", "").startswith(PREFIX):
                self._sign_redirect(response, body, body_hash)

        request.register_hook("response", sign_redirect)  # type: ignore[no-untyped-call]
        return request

    def _sign_redirect(self, response: requests.Response, body: Any, body_hash: str) -> None:
        """Put the signature of the next request where requests copies its headers from."""
        sent = response.request
        with self._requests.Session() as session:
            session.trust_env = False
            following = next(session.resolve_redirects(response, sent, yield_requests=True))
        response.request = sent.copy()  # what was sent stays as it was for whoever looks
        if may_sign(_origin(sent.url), _origin(following.url)):
            # requests drops the body where it turns the request into a GET
            sent.headers["Authorization"] = self._sign(
                following, body_hash if following.body is body else EMPTY_BODY_HASH
            )
        else:
            del sent.headers["Authorization"]

    def _sign(self, request: requests.PreparedRequest, body_hash: str) -> str:
        if self._device is None:
            self._device = default_device()
        return sign_request(
            self._device,
            method=request.method or "GET",
            target=_wire_target(request),
            body_hash=body_hash,
            now=self._now(),
        )


def _origin(url: str | None) -> Origin:
    parts = urlsplit(url or "")
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)


def _wire_target(request: requests.PreparedRequest) -> str:
    """The target as urllib3 puts it on the wire: it re-writes ``%2f`` to ``%2F`` and encodes some more characters."""
    # Its own function, though private: parse_url() does the same but resolves dot segments, which the wire still has.
    from urllib3.util.url import _encode_target

    return _encode_target(request.path_url)


def _hash_body(body: Any) -> str:
    if not body:
        return EMPTY_BODY_HASH
    if isinstance(body, bytes | bytearray):
        return hashlib.sha256(body).hexdigest()
    try:
        position = body.tell()
        digest = hashlib.sha256()
        while chunk := body.read(CHUNK_BYTES):
            digest.update(chunk)
        body.seek(position)
    except (AttributeError, OSError):
        raise InvalidInput(
            "This body can be read but once, and it must be hashed before it is sent. Give bytes or a seekable file, or use httpx "
            "with AmeshAuth, which spools it."
        ) from None
    except TypeError:
        raise InvalidInput("This file is open in text mode. Open it in binary mode, 'rb'.") from None
    return digest.hexdigest()
