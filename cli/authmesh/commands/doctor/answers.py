"""What the answer of a server means for a device that asked whether it is known; all but a good one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.display import clean_line
from authmesh.protocol.header import SCHEME

Meaning = tuple[str, str]

#: Code of an error body (protocol.md §3) → what it says of the server or the way to it, and what to do.
_CODES: dict[str, Meaning] = {
    "missing_header": (
        "The signature did not arrive: something on the way takes the Authorization header off.",
        "Look at the proxies in front of the server; with Apache it needs WSGIPassAuthorization On.",
    ),
    "malformed_header": (
        "The Authorization header arrived changed.",
        "Look at the proxies in front of the server.",
    ),
    "unsupported_version": (
        "The server does not speak this version of the protocol.",
        "Bring the older side up to date.",
    ),
    "timestamp_out_of_range": (
        "The server knows this device, and refuses it because the clocks are too far apart.",
        "Set both clocks by NTP: timedatectl set-ntp true, or start chrony or systemd-timesyncd.",
    ),
    "payload_too_large": (
        "The server refuses a request without a body as too large.",
        "There: see AMESH['MAX_BODY_BYTES'], and what proxies add.",
    ),
    "allow_list_integrity_failure": (
        "The server can't verify its list of trusted devices, so it lets nobody in.",
        "There: manage.py amesh_doctor, then manage.py amesh_integrity. Its log has the reason.",
    ),
    "body_parser_ordering_error": (
        "On the server something reads the body before amesh does.",
        "There: put AmeshMiddleware before every middleware that reads the body.",
    ),
    "nonce_store_unavailable": (
        "The server can't reach the cache where it remembers nonces, so it lets nobody in.",
        "There: bring the cache (AMESH['NONCE_CACHE'], usually Redis) back.",
    ),
}


def meaning(status: int, headers: Mapping[str, str], body: Any, *, own: str, pair: str) -> Meaning:
    """A sentence that says what the answer means, and one that says what to do.

    Args:
        status: HTTP status.
        headers: of the answer, their names in any case.
        body: its JSON, or None.
        own: the device id of whoever asked.
        pair: how a device is paired here, such as ``amesh invite``.
    """
    code = body.get("error") if isinstance(body, dict) else None
    if isinstance(code, str) and code in _CODES:
        return _CODES[code]
    if status == 401 and code == "unauthorized":
        return (
            "The server does not let this device in: it does not know it, has revoked it, or has it as a target only.",
            f"There: manage.py amesh_list must have {own} as controller. If it does not, pair again ({pair}), or trust the line of "
            "export-key. If it does, something on the way changes the request, and the server's log has the reason.",
        )
    if 300 <= status < 400:
        to = clean_line(headers.get("Location", ""))[:200] or "elsewhere"
        return f"The server sends on to {to}, and a signature holds for one address only.", "Give that address."
    return _OTHERS.get(status, _other)(status)


def _no_such_address(status: int) -> Meaning:
    return (
        f"There is no check address here ({status}).",
        f"Give the root of the site, or the whole check address; {CHECK_PATH} is the usual one. The server must include "
        "amesh_django.urls; an older one has nothing of the kind, and is not to be asked by doctor.",
    )


def _not_ours(status: int) -> Meaning:
    return (
        f"Something else answers here with {status}: no check address says that.",
        f"Give the root of the site, or the whole check address; {CHECK_PATH} is the usual one.",
    )


def _other_credentials(status: int) -> Meaning:
    return (
        "Something else asks for credentials here (401), and not in the way of amesh.",
        f"Look at the proxies in front of the server. Its check address must ask for {SCHEME} alone.",
    )


def _bad_request(status: int) -> Meaning:
    return (
        "The server refuses the request before amesh sees it (400).",
        "There: ALLOWED_HOSTS must have the host name under which you ask.",
    )


def _forbidden(status: int) -> Meaning:
    return (
        "Something in front of the check address refuses the request (403).",
        "Look at CDN, firewall and proxies, and at other middleware of the server.",
    )


def _gateway(status: int) -> Meaning:
    return (
        f"A proxy answers that the server behind it does not ({status}).",
        "Start the server, and see what the proxy is told to ask.",
    )


def _other(status: int) -> Meaning:
    if status >= 500:
        return (
            f"The server fails ({status}).",
            "Its log says why. There: manage.py check, and manage.py amesh_doctor.",
        )
    return _not_ours(status)


_OTHERS: dict[int, Callable[[int], Meaning]] = {
    400: _bad_request,
    401: _other_credentials,
    403: _forbidden,
    404: _no_such_address,
    502: _gateway,
    503: _gateway,
    504: _gateway,
}
