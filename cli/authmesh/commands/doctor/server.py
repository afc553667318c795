"""The checks of a server: one signed request to its check address, and what the answer means."""

from __future__ import annotations

import datetime as dt
import email.utils
import ipaddress
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from authmesh.client import AmeshAuth
from authmesh.client.enrolling import origin_of
from authmesh.device import LocalDevice
from authmesh.device.servers import ServerStore
from authmesh.protocol.check import CHECK_PATH, EXPIRES_HEADER, ROTATE_HEADER, CheckAnswer
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.enrollment import PENDING
from authmesh.protocol.errors import InvalidInput, Run

from ..network import CHECK, Unreachable, environment_problem, unreachable
from ..terminal.errors import UsageProblem
from ..words import when
from .answers import meaning
from .findings import Finding

_MAX_BYTES = 65536
#: A difference of the clocks that deserves a warning, and one at which requests are rejected (protocol.md §3), in seconds.
WARNING_SECONDS, REJECTED_SECONDS = 20, 30
_NTP = "Synchronize it with NTP: timedatectl set-ntp true, or start chrony or systemd-timesyncd."


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server.

    Attributes:
        status: HTTP status.
        headers: its headers.
        body: the JSON in it; None if it is not JSON.
        before: Unix time when the request was sent.
        after: Unix time when the answer arrived.
    """

    status: int
    headers: httpx.Headers
    body: Any
    before: float
    after: float


def check_url(text: str) -> httpx.URL:
    """Return the check address that a URL stands for: the usual one for the root of a site, or the URL itself.

    Raises:
        UsageProblem: not an HTTP URL.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageProblem(
            "URL is not the address of a server. Nothing was examined.",
            hint="Use an address such as https://server.example, or a check address.",
        )
    url = url.copy_with(username=None, password=None, fragment=None)
    return url.copy_with(path=CHECK_PATH, query=None) if url.path in ("", "/") else url


def shown(url: httpx.URL) -> str:
    """Return a URL without its query, which may hold secrets."""
    return clean_line(str(url.copy_with(query=None)))


def ask(url: httpx.URL, device: LocalDevice | None, seconds: float) -> Answer:
    """Send one request, signed unless *device* is None. Redirects are not followed.

    Raises:
        Unreachable: there was no answer.
        KeyStoreError: the key cannot be used.
    """
    problem = environment_problem()
    if problem is not None:
        raise Unreachable(problem.message, hint=problem.hint)
    auth = AmeshAuth(device) if device is not None else None
    before = time.time()
    try:
        with (
            httpx.Client(auth=auth, timeout=seconds, headers={"Accept": "application/json"}) as client,
            client.stream("GET", url) as response,
        ):
            after = time.time()
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_BYTES:
                    break
    except httpx.TimeoutException:
        raise Unreachable(
            f"{url.host} did not answer within {seconds:g} s.", hint=f"{CHECK} To allow more time, use --timeout."
        ) from None
    except (httpx.HTTPError, UnicodeError) as error:
        raise unreachable(error, url) from None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    return Answer(response.status_code, response.headers, body, before, after)


class ServerChecks:
    """The checks of one server. All of them examine the same answer.

    Args:
        url: its check address.
        device: the device that asks; None asks without a signature, so that network and clock can still be examined.
        seconds: time limit.
    """

    def __init__(self, url: httpx.URL, device: LocalDevice | None, seconds: float) -> None:
        self._url = url
        self._device = device
        self._seconds = seconds
        self._answer: Answer | None = None

    def reachable(self) -> Iterator[Finding]:
        """Examine whether the server answers."""
        answer = self._answer = ask(self._url, self._device, self._seconds)
        took = f"{(answer.after - answer.before) * 1000:.0f} ms"
        if self._url.scheme == "https":
            yield Finding("server", "ok", f"{shown(self._url)} answers ({took}), and its certificate is trusted.")
        elif _is_local(self._url.host):
            yield Finding("server", "ok", f"{shown(self._url)} answers ({took}).")
        else:
            yield Finding(
                "server",
                "warning",
                f"{shown(self._url)} answers ({took}), without TLS.",
                "Anyone on the way can read what is sent, and can answer in place of the server. Use https.",
            )

    def clock(self) -> Iterator[Finding]:
        """Examine how much the clocks of this machine and the server differ."""
        answer = self._received()
        moment = _date(answer)
        if moment is None:
            yield Finding("clock", "skipped", "Not compared: the answer has no Date.", "Compare the clocks by hand.")
            return
        skew = _skew(moment, answer)
        if skew == 0:
            yield Finding("clock", "ok", "The clock of this machine agrees with the server's clock.")
            return
        where = "behind" if skew > 0 else "ahead of"
        text = f"This machine's clock is {abs(skew)} s {where} the server's ({moment:%Y-%m-%d %H:%M:%S} UTC)."
        limit = f"Requests are rejected beyond {REJECTED_SECONDS} s."
        if abs(skew) > REJECTED_SECONDS:
            yield Finding("clock", "problem", text, f"{limit} Find out which clock is wrong. {_NTP}")
        elif abs(skew) > WARNING_SECONDS:
            yield Finding("clock", "warning", text, f"{limit} {_NTP}")
        else:
            yield Finding("clock", "ok", f"{text} This is close enough.")

    def known(self) -> Iterator[Finding]:
        """Examine whether the server knows this device."""
        answer, device = self._received(), self._device
        if device is None:
            yield Finding("known", "skipped", "Not examined: this device cannot sign.", "Fix that first.")
            return
        own = device.identity.device_id
        if answer.status == 200:
            try:
                found = CheckAnswer.from_json(answer.body)
            except InvalidInput:
                found = None
            if found is not None and found.device_id == own:
                granted = ", ".join(sorted(clean(name) for name, value in found.permissions.items() if value))
                permissions = f"permissions: {granted}" if granted else "no further permissions"
                yield Finding(
                    "known", "ok", f"The server knows this device as “{clean(found.friendly_name)}”, {permissions}."
                )
                expires = answer.headers.get(EXPIRES_HEADER)
                if expires is not None:
                    message = f"The key of this device expires on the server at {when(expires)}."
                    yield Finding("known", "warning", message, ("Replace it before: ", Run("rotate"), "."))
                if ROTATE_HEADER in answer.headers:
                    yield Finding(
                        "known",
                        "warning",
                        "The server asks this device to replace its key.",
                        ("Run ", Run("rotate"), "."),
                    )
                return
        if answer.status == 401 and self._has_waited(device):
            message = (
                "When this device enrolled, the server let it wait for the approval of a person, and rejects it so far."
            )
            yield Finding("known", "problem", message, f"On the server, approve {own}, or ask its administrator to.")
            return
        message, hint = meaning(answer.status, answer.headers, answer.body, own=own)
        yield Finding("known", "problem", message, hint)

    def _has_waited(self, device: LocalDevice) -> bool:
        """Return True if this device waited for approval when it last enrolled at the server."""
        asked = origin_of(str(self._url))
        path = getattr(device, "path", None)  # a device in memory has none
        servers = ServerStore(path).read() if path is not None else ()
        return any(server.state == PENDING and origin_of(server.url) == asked for server in servers)

    def _received(self) -> Answer:
        if self._answer is None:
            raise Unreachable()
        return self._answer


def _date(answer: Answer) -> dt.datetime | None:
    """Return the server's clock: the Date header in whole seconds, or the time in the body if the server sends no Date."""
    try:
        return email.utils.parsedate_to_datetime(answer.headers["Date"]).astimezone(dt.UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    try:
        return CheckAnswer.from_json(answer.body).time
    except InvalidInput:
        return None


def _skew(moment: dt.datetime, answer: Answer) -> int:
    """Return by how many seconds the server's clock is ahead at least, not counting the time that the answer was on its way."""
    seconds = moment.timestamp()
    if seconds > answer.after:
        return round(seconds - answer.after)
    return -round(max(0.0, answer.before - (seconds + 1)))  # a Date has no fractions


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
