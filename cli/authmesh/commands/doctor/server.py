"""What doctor asks a server: one signed request to its check address, and what the answer means."""

from __future__ import annotations

import datetime as dt
import email.utils
import ipaddress
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from authmesh.client import AmeshAuth
from authmesh.device import LocalDevice
from authmesh.protocol.check import CHECK_PATH, CheckAnswer
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AmeshError, InvalidInput

from ..requests import environment_problem
from ..terminal.console import UsageProblem
from .answers import meaning
from .findings import Finding

_MOST_BYTES = 65536
#: From here on a skew is worth a warning, and from here on requests are refused (protocol.md §3), in seconds.
WARNING_SECONDS, REFUSED_SECONDS = 20, 30
_NTP = "Let it set its clock by NTP: timedatectl set-ntp true, or start chrony or systemd-timesyncd."


class Unreachable(AmeshError):
    """The server can't be reached, or does not answer."""

    code = "no_answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: of the answer.
        body: the JSON in it; None where there is none.
        before: when the request was sent, Unix seconds.
        after: when the answer was there.
    """

    status: int
    headers: httpx.Headers
    body: Any
    before: float
    after: float


def check_url(text: str) -> httpx.URL:
    """The check address that a URL means: of a site the usual one, else the URL itself.

    Raises:
        UsageProblem: not a URL of HTTP.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageProblem("URL is the address of a server, such as https://server.example, or of its check address.")
    url = url.copy_with(username=None, password=None, fragment=None)
    return url.copy_with(path=CHECK_PATH, query=None) if url.path in ("", "/") else url


def shown(url: httpx.URL) -> str:
    """A URL without its query, which may hold secrets."""
    return clean_line(str(url.copy_with(query=None)))


def ask(url: httpx.URL, device: LocalDevice | None, seconds: float) -> Answer:
    """Send one request, signed unless *device* is None. No redirect is followed.

    Raises:
        Unreachable: no answer.
        KeyStoreError: the key can't be used.
    """
    problem = environment_problem()
    if problem is not None:
        raise Unreachable(problem)
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
                if len(content) > _MOST_BYTES:
                    break
    except httpx.TimeoutException:
        raise Unreachable(
            f"{url.host} did not answer within {seconds:g} s. {_CHECK} Or allow more: --timeout."
        ) from None
    except (httpx.HTTPError, UnicodeError) as error:
        raise Unreachable(_why(error, url)) from None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    return Answer(response.status_code, response.headers, body, before, after)


def _goes_through_proxy(url: httpx.URL) -> bool:
    named = urllib.request.getproxies()
    return (url.scheme in named or "all" in named) and not urllib.request.proxy_bypass(url.host)


_CHECK = "Check address, network and firewall, and that the server runs."


def _why(error: BaseException, url: httpx.URL) -> str:
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__ or at.__context__
    if isinstance(error, httpx.ProxyError) or (isinstance(error, httpx.ConnectError) and _goes_through_proxy(url)):
        if not any(isinstance(cause, ssl.SSLError) for cause in causes):
            return (
                f"The proxy on the way to {url.host} can't be reached, or refuses ({clean_line(str(error).partition(chr(10))[0])}). "
                f"Correct {url.scheme.upper()}_PROXY or ALL_PROXY, or name the server in NO_PROXY."
            )
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"The TLS certificate of {url.host} is not trusted here: {clean_line(cause.verify_message)}. Check the address "
                "and this machine's clock; for a server of your own, install the certificate of its authority "
                "(SSL_CERT_FILE). Someone may be pretending to be the server."
            )
        if isinstance(cause, ssl.SSLError):
            return f"{url.host} does not speak TLS as it should. Check address and port: without TLS it begins with http://."
        if isinstance(cause, socket.gaierror | UnicodeError):
            return f"There is no server of the name {url.host}. Check the address, and this machine's DNS."
        if isinstance(cause, ConnectionRefusedError):
            return f"Nothing listens at {url.host}, port {url.port or (443 if url.scheme == 'https' else 80)}. {_CHECK}"
    why = clean_line(str(error).partition("\n")[0]) or type(error).__name__
    return f"{url.host} can't be reached ({why}). {_CHECK}"


class ServerChecks:
    """The checks of one server. All of them look at the same answer.

    Args:
        url: its check address.
        device: who asks; None asks without a signature, so that at least network and clock can be looked at.
        seconds: how long it may take.
    """

    def __init__(self, url: httpx.URL, device: LocalDevice | None, seconds: float) -> None:
        self._url = url
        self._device = device
        self._seconds = seconds
        self._answer: Answer | None = None

    def reachable(self) -> Iterator[Finding]:
        """Does it answer?"""
        answer = self._answer = ask(self._url, self._device, self._seconds)
        took = f"{(answer.after - answer.before) * 1000:.0f} ms"
        if self._url.scheme == "https":
            yield Finding("server", "ok", f"{shown(self._url)} answers ({took}), and its certificate is trusted.")
        elif _is_here(self._url.host):
            yield Finding("server", "ok", f"{shown(self._url)} answers ({took}).")
        else:
            yield Finding(
                "server",
                "warning",
                f"{shown(self._url)} answers ({took}), without TLS.",
                "Whoever is on the way reads what is sent, and can answer in the server's name. Use https.",
            )

    def clock(self) -> Iterator[Finding]:
        """How far is this machine's clock from the server's?"""
        answer = self._got()
        moment = _date(answer)
        if moment is None:
            yield Finding("clock", "skipped", "Not compared: the answer has no Date.", "Compare the clocks by hand.")
            return
        skew = _skew(moment, answer)
        if skew == 0:
            yield Finding("clock", "ok", "It goes with the server's clock.")
            return
        where = "behind" if skew > 0 else "ahead of"
        text = f"This machine's clock is {abs(skew)} s {where} the server's ({moment:%Y-%m-%d %H:%M:%S} UTC)"
        if abs(skew) > REFUSED_SECONDS:
            advice = f"Requests are refused beyond {REFUSED_SECONDS} s. Find out which clock is wrong. {_NTP}"
            yield Finding("clock", "problem", f"{text}.", advice)
        elif abs(skew) > WARNING_SECONDS:
            advice = f"Requests are refused beyond {REFUSED_SECONDS} s. {_NTP}"
            yield Finding("clock", "warning", f"{text}.", advice)
        else:
            yield Finding("clock", "ok", f"{text}: near enough")

    def known(self, pair: str) -> Iterator[Finding]:
        """Does the server know this device?

        Args:
            pair: how a device is paired here.
        """
        answer, device = self._got(), self._device
        if device is None:
            yield Finding("known", "skipped", "Not asked: this device can't sign.", "Mend that first.")
            return
        own = device.identity.device_id
        if answer.status == 200:
            try:
                found = CheckAnswer.from_json(answer.body)
            except InvalidInput:
                found = None
            if found is not None and found.device_id == own:
                granted = ", ".join(sorted(clean(name) for name, value in found.permissions.items() if value))
                permissions = f"permissions: {granted}" if granted else "no permissions besides"
                yield Finding(
                    "known", "ok", f"The server knows this device as “{clean(found.friendly_name)}”, {permissions}."
                )
                return
        message, advice = meaning(answer.status, answer.headers, answer.body, own=own, pair=pair)
        yield Finding("known", "problem", message, advice)

    def _got(self) -> Answer:
        if self._answer is None:
            raise Unreachable("The server did not answer.")
        return self._answer


def _date(answer: Answer) -> dt.datetime | None:
    """The server's own clock: the header, whole seconds. A check address says it as well, for servers that send no Date."""
    try:
        return email.utils.parsedate_to_datetime(answer.headers["Date"]).astimezone(dt.UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    try:
        return CheckAnswer.from_json(answer.body).time
    except InvalidInput:
        return None


def _skew(moment: dt.datetime, answer: Answer) -> int:
    """By how many seconds the server's clock is ahead, at least: how long the answer was on its way is nobody's fault."""
    seconds = moment.timestamp()
    if seconds > answer.after:
        return round(seconds - answer.after)
    return -round(max(0.0, answer.before - (seconds + 1)))  # a Date has no fractions


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
