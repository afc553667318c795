"""AmeshRequestsAuth signs the requests of the library requests, and the redirects that it follows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from authmesh.protocol.canonical import EMPTY_BODY_HASH
from authmesh.protocol.check import ROTATE_HEADER
from authmesh.protocol.errors import InvalidInput

from .notices import heed
from .origins import Origin, may_sign, origin
from .signing import PREFIX, Signer, default_device, enroll_default_device, sign_request
from .spool import CHUNK_BYTES

if TYPE_CHECKING:
    import requests


class AmeshRequestsAuth:
    """Signs the requests of requests: ``requests.get(url, auth=AmeshRequestsAuth())``, or ``session.auth = …``.

    Each request gets its own signature over exactly the method, target and body that are sent. The body may be bytes, text, a form,
    JSON, or a file opened in binary mode, which is read twice. A generator raises InvalidInput, because it can be read only once.

    Redirects that requests follows are signed with a fresh nonce as long as they stay at the origin of the request, or move to
    https on the same host. A redirect to another origin is sent unsigned, and so are all redirects after it.

    A prepared request can be sent only once by ``session.send``. Prepare it again to send it again.

    Args:
        device: the device that signs. Defaults to :func:`~authmesh.client.default_device`, opened at the first request.
        now: returns Unix seconds.

    Raises:
        ImportError: requests is not installed.
    """

    def __init__(self, device: Signer | None = None, *, now: Callable[[], float] = time.time) -> None:
        try:
            import requests
        except ImportError:
            raise ImportError(
                "AmeshRequestsAuth needs the package requests. Install it: pip install 'amesh-django[requests]'"
            ) from None
        self._requests = requests
        self._device = device
        self._now = now

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign *request*. requests calls this after it has prepared the request.

        Raises:
            InvalidInput: the body cannot be read twice, or is a file in text mode.
            IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
            EnrollmentError, RequestError: the token in ``AMESH_ENROLL_TOKEN`` is for this server, and did not enroll the device.
        """
        if self._device is None:
            enroll_default_device(_origin_of(request.url))
        if isinstance(request.body, str):  # urllib3 would encode it in the same way, but later
            request.body = request.body.encode()
        body_hash = _hash_body(request.body)
        request.headers["Authorization"] = self._sign(request, body_hash)
        body = request.body

        def examine(response: requests.Response, **options: Any) -> None:
            if not response.request.headers.get("Authorization", "").startswith(PREFIX):
                return
            asked = _origin_of(response.request.url)
            if ROTATE_HEADER in response.headers:
                heed(response.headers, asked, self._signer(asked).identity.device_id)
            if response.is_redirect:
                self._sign_redirect(response, body, body_hash)

        request.register_hook("response", examine)  # type: ignore[no-untyped-call]
        return request

    def _sign_redirect(self, response: requests.Response, body: Any, body_hash: str) -> None:
        """Set the header of the sent request to the signature of the next one, because requests copies its headers from there."""
        sent = response.request
        with self._requests.Session() as session:
            session.trust_env = False
            following = next(session.resolve_redirects(response, sent, yield_requests=True))
        response.request = sent.copy()  # the caller sees the request as it was sent
        if may_sign(_origin_of(sent.url), _origin_of(following.url)):
            # requests drops the body if it changes the request to a GET
            sent.headers["Authorization"] = self._sign(
                following, body_hash if following.body is body else EMPTY_BODY_HASH
            )
        else:
            del sent.headers["Authorization"]

    def _signer(self, asked: Origin) -> Signer:
        return self._device or default_device(asked)  # each time: its key may have been replaced

    def _sign(self, request: requests.PreparedRequest, body_hash: str) -> str:
        return sign_request(
            self._signer(_origin_of(request.url)),
            method=request.method or "GET",
            target=_wire_target(request),
            body_hash=body_hash,
            now=self._now(),
        )


def _origin_of(url: str | None) -> Origin:
    parts = urlsplit(url or "")
    return origin(parts.scheme, parts.hostname or "", parts.port)


def _wire_target(request: requests.PreparedRequest) -> str:
    """Return the target as urllib3 sends it, with ``%2f`` rewritten as ``%2F`` and some more characters encoded."""
    # A private function: the public parse_url() also resolves dot segments, which are still there on the wire.
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
            "The body can be read only once, and it must be hashed before it is sent.",
            hint="Pass bytes or a seekable file, or use httpx with AmeshAuth, which spools the body.",
        ) from None
    except TypeError:
        raise InvalidInput("The file is open in text mode.", hint="Open it in binary mode: 'rb'.") from None
    return digest.hexdigest()
