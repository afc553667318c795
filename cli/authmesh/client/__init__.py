"""FIRST: sign outgoing requests: httpx (sync and async), requests, :func:`fetch`, or just the header.

A signature is good for one request: its nonce is used up by it. Retries belong round the whole call, never below it (urllib3's
``Retry``, a proxy that repeats requests): what repeats a signed request is refused as a replay.
"""

from __future__ import annotations

from .fetching import fetch
from .httpx_auth import AmeshAuth
from .requests_auth import AmeshRequestsAuth
from .signing import Signer, authorization_header, default_device, default_device_async, forget_devices

__all__ = [
    "AmeshAuth",
    "AmeshRequestsAuth",
    "Signer",
    "authorization_header",
    "default_device",
    "default_device_async",
    "fetch",
    "forget_devices",
]
