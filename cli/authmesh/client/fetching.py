"""fetch() sends one signed request without a client object."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx

from .httpx_auth import AmeshAuth
from .signing import Signer

TIMEOUT_SECONDS = 30.0

#: Headers or query parameters: a mapping, or pairs if a name occurs more than once.
Pairs = Mapping[str, str] | Sequence[tuple[str, str]]


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return a cached TLS context. Loading the certificates takes longer than the whole request."""
    return httpx.create_ssl_context()


def fetch(
    url: str | httpx.URL,
    method: str = "GET",
    *,
    params: Pairs | None = None,
    headers: Pairs | None = None,
    body: bytes | str | Iterable[bytes] | None = None,
    data: Mapping[str, Any] | None = None,
    json: Any = None,
    files: Any = None,
    device: Signer | None = None,
    timeout: float | httpx.Timeout | None = TIMEOUT_SECONDS,
    follow_redirects: bool = False,
    verify: bool | ssl.SSLContext = True,
) -> httpx.Response:
    """Send one signed request and return the response. For several requests, use one ``httpx.Client(auth=AmeshAuth())``.

    Args:
        url: URL of the request.
        method: HTTP method.
        params: query parameters; they replace the query of *url*.
        headers: additional headers.
        body: raw body. Text is sent as UTF-8; a file or a generator is spooled first.
        data: fields of a form, instead of *body*.
        json: value of a JSON body, instead of *body*.
        files: files of a multipart form, as for httpx; may be combined with *data*.
        device: the device that signs. Defaults to :func:`~authmesh.client.default_device`.
        timeout: seconds for each of connecting, writing and reading; None waits forever.
        follow_redirects: True follows redirects, signed as :class:`~authmesh.client.AmeshAuth` describes.
        verify: False accepts any certificate; a context sets the trusted authorities or a client certificate.

    Returns:
        the response with any status. Call ``raise_for_status()`` to raise an exception for 4xx and 5xx.

    Raises:
        httpx.HTTPError: there was no response (connection, timeout, too many redirects).
        IdentityMissing, DirectoryError, KeyStoreError: the device cannot be opened or its key cannot be used.
    """
    with httpx.Client(
        auth=AmeshAuth(device),
        verify=_tls() if verify is True else verify,
        timeout=timeout,
        follow_redirects=follow_redirects,
    ) as client:
        return client.request(
            method,
            url,
            params=params,  # type: ignore[arg-type]
            headers=headers,
            content=body,
            data=data,
            json=json,
            files=files,
        )
