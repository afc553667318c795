"""Enroll this device at a server with an enrollment token (docs/fleet.md §1): by a command, or before the first request.

The key is made and stored first, and is used again by each later attempt. So it does not matter when this device or the server is
interrupted: the next attempt succeeds with the same key. Nothing else is stored before the server's answer is verified.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import functools
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from authmesh.device import AllowList, FileAllowList, Identity, LocalDevice, init_device
from authmesh.device.directory import check_name
from authmesh.device.replacing import accept, read_replacement, recover
from authmesh.device.servers import EnrolledServer, ServerStore
from authmesh.files.clock import utc_now
from authmesh.files.locks import ForkSafeLock
from authmesh.protocol.allow_list import TARGET, DeviceEntry
from authmesh.protocol.display import clean
from authmesh.protocol.enrollment import (
    ENROLL_PATH,
    PENDING,
    EnrollmentToken,
    build_request,
    parse_token,
    verify_answer,
)
from authmesh.protocol.enrollment_errors import NotAnEnrollmentToken
from authmesh.protocol.errors import AmeshError, IdentityExists, IdentityMissing, InvalidInput

from .answers import read_answer
from .origins import Origin, origin

logger = logging.getLogger("amesh_django.client")

#: Environment variable with the enrollment token of this device.
ENROLL_VARIABLE = "AMESH_ENROLL_TOKEN"
TIMEOUT_SECONDS = 10.0
#: Seconds before a request tries again to enroll after a failure.
PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """The result.

    Attributes:
        identity: the identity of this device.
        server: the server, as it is in the allow list.
        state: ``active``, or ``pending`` until a person at the server approves this device.
        url: address of the server's ``amesh/``.
    """

    identity: Identity
    server: DeviceEntry
    state: str
    url: str


def enroll(
    token: EnrollmentToken,
    *,
    directory: Path,
    name: str | None = None,
    open_device: Callable[[], LocalDevice] | None = None,
    open_list: Callable[[LocalDevice], AllowList] = FileAllowList,
    now: Callable[[], dt.datetime] = utc_now,
) -> EnrolledDevice:
    """Enroll this device. If it has no identity, make one first.

    Args:
        token: the token.
        directory: the device directory.
        name: name of this device, if it has no identity yet. Defaults to the host name.
        open_device: returns this device. Defaults to the one in *directory*.
        open_list: returns its allow list. Defaults to the file in *directory*.
        now: the clock.

    Raises:
        EnrollmentError: the server cannot be reached, or its answer is not its own; nothing was stored but the new identity.
        RequestError: the server refuses this device; nothing was stored but the new identity.
        DirectoryError, KeyStoreError, AllowListError: this device cannot make an identity, sign, or store.
    """
    recover(directory, now=now())  # or the list may be sealed by a key that identity.json does not name yet
    open_device = open_device or functools.partial(LocalDevice, directory)
    device = _device(token, directory, name, open_device, now)
    public_key = device.identity.public_key
    body = build_request(
        token,
        public_key=public_key,
        friendly_name=clean(device.identity.friendly_name),
        now=int(now().timestamp()),
        sign=device.sign,
    )
    value = read_answer("POST", f"{token.url}{ENROLL_PATH}", json=body, timeout=TIMEOUT_SECONDS)
    answer = verify_answer(token, public_key=public_key, value=value)
    server = DeviceEntry.new(token.public_key, clean(answer.server_name), TARGET, added_at=now(), added_by="handshake")
    allow_list = open_list(device)
    known = allow_list.find(token.public_key)
    if known is None:  # a server that may call this device stays its controller
        allow_list.add(server)
    ServerStore(directory).put(EnrolledServer(token.issuer, token.url, token.jti, answer.state, now()))
    rotation = read_replacement(directory)
    if rotation is not None and rotation.new.public_key == public_key:  # the key is replaced at other servers
        accept(directory, rotation, token.issuer)
    return EnrolledDevice(device.identity, known or server, answer.state, token.url)


def _device(
    token: EnrollmentToken,
    directory: Path,
    name: str | None,
    open_device: Callable[[], LocalDevice],
    now: Callable[[], dt.datetime],
) -> LocalDevice:
    try:
        return open_device()
    except IdentityMissing:
        pass
    with contextlib.suppress(IdentityExists):  # another process was faster
        init_device(directory, _name(name, token), now=now())
    return open_device()


def _name(given: str | None, token: EnrollmentToken) -> str:
    if given is not None:
        return check_name(given)
    for name in (socket.gethostname(), token.name or ""):
        with contextlib.suppress(InvalidInput):
            return check_name(clean(name) if name else "")
    return "device"


# --- before the first request ---------------------------------------------------------------------------------------

_failures: dict[tuple[Path, str], tuple[float, AmeshError]] = {}
_settled: set[tuple[Path, str]] = set()
_lock = ForkSafeLock()


def reset() -> None:
    """Forget all results. For tests."""
    _failures.clear()
    _settled.clear()


def is_due(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Return True if there is an enrollment token in the environment."""
    return bool(environ.get(ENROLL_VARIABLE))


def enroll_first(asked: Origin, directory: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Enroll this device, before its first request to the server of the token in the environment. Does nothing for other servers.

    Args:
        asked: origin of the request.
        directory: the device directory.
        environ: the environment with the token, which is removed from it after it was used.

    Raises:
        AmeshError: as :func:`enroll`. Requests of the next seconds get the same error without another attempt.
    """
    text = environ.get(ENROLL_VARIABLE, "").strip()
    if not text:
        return
    token = _token(text, directory)
    if token is None or origin_of(token.url) != asked:
        return
    key = (directory, token.jti)
    if key in _settled:
        return
    with _lock:
        if key in _settled:
            return
        until, error = _failures.get(key, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise copy.copy(error)
        try:
            if all(server.jti != token.jti for server in ServerStore(directory).read()):
                done = enroll(token, directory=directory)
                logger.info(
                    "This device was enrolled as %s at %s and is %s.", done.identity.device_id, token.issuer, done.state
                )
                if done.state == PENDING:
                    logger.warning("Requests to %s are rejected until a person there approves this device.", token.url)
        except AmeshError as failure:
            _failures[key] = (time.monotonic() + PAUSE_SECONDS, failure)
            logger.error("This device could not be enrolled at %s (%s): %s", token.issuer, failure.code, failure)
            raise
        _settled.add(key)
        if environ.get(ENROLL_VARIABLE, "").strip() == text:
            environ.pop(ENROLL_VARIABLE, None)


def _token(text: str, directory: Path) -> EnrollmentToken | None:
    """Return the token. None if it is not one and this device has an identity: then it may well be enrolled."""
    try:
        return parse_token(text)
    except NotAnEnrollmentToken as error:
        if not (directory / "identity.json").exists():
            raise
        if (directory, "") not in _settled:
            _settled.add((directory, ""))
            logger.warning("%s is ignored: %s", ENROLL_VARIABLE, error)
        return None


def origin_of(url: str) -> Origin:
    """Return the origin of the address of a server."""
    parts = urlsplit(url)
    return origin(parts.scheme, (parts.hostname or "").lower(), parts.port)


def origin_of_text(url: Any) -> Origin | None:
    """Return the origin of a URL that is a text or an ``httpx.URL``; None for a path or what is no URL."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return None
    return origin(parsed.scheme, parsed.host, parsed.port) if parsed.host else None
