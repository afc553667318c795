"""Sign outgoing requests: httpx (sync and async), requests, aiohttp, :func:`fetch`, or only the header.

``httpx_auth``, ``requests_auth`` and ``aiohttp_middleware`` hook into the libraries, hash the body (``spool`` keeps a streamed one)
and decide by ``origins`` which redirects may be signed. All of them call ``signing``, which opens the default device and makes the
header; a device without an identity is first enrolled by its bootstrap token (:mod:`authmesh.pairing.bootstrap`), and one with an
enrollment token enrolls at its server (``enrolling``, ``answers``) before the first request to it. ``fetching`` wraps one request.
``notices`` logs what a server tells the device beside its answers.

A signature is valid for one request, because its nonce can be used only once. Retry the whole call, never a part below it: a request
that is repeated by urllib3's ``Retry`` or by a proxy is rejected as a replay.
"""

from __future__ import annotations

from .aiohttp_middleware import AmeshAiohttpMiddleware
from .fetching import fetch
from .httpx_auth import AmeshAuth
from .requests_auth import AmeshRequestsAuth
from .signing import Signer, authorization_header, default_device, default_device_async, forget_devices

__all__ = [
    "AmeshAiohttpMiddleware",
    "AmeshAuth",
    "AmeshRequestsAuth",
    "Signer",
    "authorization_header",
    "default_device",
    "default_device_async",
    "fetch",
    "forget_devices",
]
