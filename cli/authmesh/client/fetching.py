"""fetch(): one signed request, without a client to keep."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx

from .httpx_auth import AmeshAuth
from .signing import Signer

TIMEOUT_SECONDS = 30.0

#: Headers or query parameters: a mapping, or pairs where a name occurs more than once.
Pairs = Mapping[str, str] | Sequence[tuple[str, str]]


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates costs more than the whole request."""
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
    """Send one signed request and read the whole answer. For many requests keep an ``httpx.Client(auth=AmeshAuth())``.

    Args:
        url: where to.
        method: HTTP method.
        params: query parameters, in place of the query of *url*.
        headers: further headers.
        body: raw body; text is sent as UTF-8, a file or a generator is spooled first.
        data: fields of a form, in place of *body*.
        json: value of a JSON body, in place of *body*.
        files: files of a multipart form, as httpx takes them; may go with *data*.
        device: who signs; None is :func:`~authmesh.client.default_device`.
        timeout: seconds for each of connecting, writing and reading; None waits for ever.
        follow_redirects: as :class:`~authmesh.client.AmeshAuth` says.
        verify: False accepts any certificate; a context sets authorities, or a certificate of this client.

    Returns:
        the answer, whatever its status: ``raise_for_status()`` turns 4xx and 5xx into an exception.

    Raises:
        httpx.HTTPError: no answer (connection, timeout, too many redirects).
        IdentityMissing, DirectoryError, KeyStoreError: the device can't be opened or its key can't be used.
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
