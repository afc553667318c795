"""The meaning of a server's answer for a device that asked whether it is known; all answers but the good one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import Hint, Run
from authmesh.protocol.header import SCHEME

#: A message that says what the answer means, and a hint that says what to do.
Meaning = tuple[str, Hint]

_PROXIES = "Check the proxies in front of the server."

#: The meaning of each code of an error body (protocol.md §3).
_CODES: dict[str, Meaning] = {
    "missing_header": (
        "The signature did not arrive: something on the way removes the Authorization header.",
        f"{_PROXIES} Apache needs WSGIPassAuthorization On.",
    ),
    "malformed_header": ("The Authorization header was changed on the way.", _PROXIES),
    "unsupported_version": (
        "The server does not support this version of the protocol.",
        "Update the older one of the two.",
    ),
    "timestamp_out_of_range": (
        "The server knows this device, and rejects the request because the two clocks differ too much.",
        "Synchronize both clocks with NTP: timedatectl set-ntp true, or start chrony or systemd-timesyncd.",
    ),
    "user_required": (
        "The server knows this device, and rejects the request because the device is not mapped to a Django user.",
        "On the server, map the device to a user in the admin.",
    ),
    "insufficient_scope": (
        "The server knows this device, and rejects the request because the address requires a scope that the device does not have.",
        "On the server, read the log for the name of the scope, and grant it to the device.",
    ),
    "payload_too_large": (
        "The server rejects a request without a body as too large.",
        "On the server, check the setting MAX_BODY_BYTES, and what proxies add to a request.",
    ),
    "allow_list_integrity_failure": (
        "The server cannot verify its allow list, so it rejects all requests.",
        "On the server, read the log, then run the management commands amesh_doctor and amesh_integrity.",
    ),
    "allow_list_unavailable": (
        "The server cannot reach the database with its allow list, so it rejects all requests.",
        "On the server, start the database, then run the management commands migrate and amesh_doctor.",
    ),
    "body_parser_ordering_error": (
        "On the server, something reads the body before amesh does.",
        "On the server, put AmeshMiddleware before every middleware that reads the body.",
    ),
    "nonce_store_unavailable": (
        "The server cannot reach the cache that stores its nonces, so it rejects all requests.",
        "On the server, start the cache that the setting NONCE_CACHE names, usually Redis.",
    ),
}


def rejects(status: int, body: Any) -> bool:
    """Return True if an answer is a rejection by amesh.

    Args:
        status: HTTP status.
        body: its JSON, or None.
    """
    code = body.get("error") if isinstance(body, dict) else None
    return isinstance(code, str) and (code in _CODES or (status == 401 and code == "unauthorized"))


def meaning(status: int, headers: Mapping[str, str], body: Any, *, own: str) -> Meaning:
    """Return what an answer means, and what to do.

    Args:
        status: HTTP status.
        headers: headers of the answer, their names in any case.
        body: its JSON, or None.
        own: device ID of the device that asked.
    """
    code = body.get("error") if isinstance(body, dict) else None
    if isinstance(code, str) and code in _CODES:
        return _CODES[code]
    if status == 401 and code == "unauthorized":
        return (
            "The server rejects this device: the device is unknown there, was revoked, or is a target only.",
            (
                f"On the server, check that the management command amesh_list lists {own} as a controller. If not, pair again with ",
                Run("invite"),
                ", or trust the line that ",
                Run("export-key"),
                " prints here. If it is listed, something on the way changes the request; the log of the server has the reason.",
            ),
        )
    if 300 <= status < 400:
        to = clean_line(headers.get("Location", ""))[:200] or "another address"
        return (
            f"The server redirects to {to}, and a signature is valid for one address only.",
            "Use the address that it redirects to.",
        )
    return _OTHERS.get(status, _other)(status)


def _no_such_address(status: int) -> Meaning:
    return (
        f"There is no check address here ({status}).",
        f"Use the root of the site, or the whole check address; {CHECK_PATH} is the usual one. The server must include "
        "amesh_django.urls. An older server has no check address, and doctor cannot query it.",
    )


def _not_ours(status: int) -> Meaning:
    return (
        f"Something else answers at this address with the status {status}, which no check address does.",
        f"Use the root of the site, or the whole check address; {CHECK_PATH} is the usual one.",
    )


def _other_credentials(status: int) -> Meaning:
    return (
        "Something else asks for credentials at this address (401), but not those of amesh.",
        f"{_PROXIES} The check address must ask for {SCHEME} only.",
    )


def _bad_request(status: int) -> Meaning:
    return (
        "The server rejects the request before amesh sees it (400).",
        "On the server, add the host name that you used to ALLOWED_HOSTS.",
    )


def _forbidden(status: int) -> Meaning:
    return (
        "Something in front of the check address rejects the request (403).",
        "Check the CDN, the firewall, the proxies, and the other middleware of the server.",
    )


def _gateway(status: int) -> Meaning:
    return (
        f"A proxy reports that the server behind it does not answer ({status}).",
        "Start the server, and check which address the proxy forwards to.",
    )


def _other(status: int) -> Meaning:
    if status >= 500:
        return (
            f"The server failed ({status}).",
            "On the server, read the log, then run the management commands check and amesh_doctor.",
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
