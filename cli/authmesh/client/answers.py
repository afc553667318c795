"""One small request to a server's ``amesh/`` address, and its JSON answer, or the error that the server's code stands for."""

from __future__ import annotations

import functools
import json as json_module
from typing import Any

import anyio
import anyio.from_thread
import httpx

from authmesh.protocol.display import clean_line
from authmesh.protocol.enrollment_errors import (
    UNKNOWN,
    EnrollmentRateLimited,
    EnrollmentRefused,
    EnrollmentTokenExpired,
    EnrollmentTokenUsedUp,
    EnrollmentTokenWithdrawn,
    InvalidEnrollmentToken,
    KeyDenied,
    MalformedEnrollment,
    MaxControllers,
    ServerUnreachable,
    UnexpectedAnswer,
)
from authmesh.protocol.errors import AmeshError, RequestError, TimestampOutOfRange, Unauthorized
from authmesh.protocol.rotation import AlreadyRotated, InvalidNewKey, KeyAlreadyKnown, TooManyRotations, WrongAudience

#: Longest answer that is read, in bytes.
MAX_ANSWER_BYTES = 65536
#: Seconds until the whole answer must be there. A server could send a byte now and then for ever.
TOTAL_SECONDS = 30.0

#: Errors that come before anything of a request is sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL)

_REFUSALS: dict[str, type[RequestError]] = {
    kind.code: kind
    for kind in (
        AlreadyRotated,
        EnrollmentRateLimited,
        EnrollmentTokenExpired,
        EnrollmentTokenUsedUp,
        EnrollmentTokenWithdrawn,
        InvalidEnrollmentToken,
        InvalidNewKey,
        KeyAlreadyKnown,
        KeyDenied,
        MalformedEnrollment,
        MaxControllers,
        TimestampOutOfRange,
        TooManyRotations,
        Unauthorized,
        WrongAudience,
    )
}


def read_answer(method: str, url: str, *, json: Any, timeout: float, auth: httpx.Auth | None = None) -> Any:
    """Send a request, follow no redirect, and return the JSON value of the answer.

    Args:
        method: HTTP method.
        url: address.
        json: JSON value of the body; None sends none.
        timeout: seconds for each of connecting, writing and reading.
        auth: signs the request.

    Raises:
        ServerUnreachable: there was no answer in time, or a status of 500 or more. Trying again may help.
        RequestError: the server refused; its code has the reason.
        UnexpectedAnswer: the answer is not part of the protocol.
    """
    exchange = functools.partial(_exchange, method, url, json=json, timeout=timeout, auth=auth)
    try:
        with anyio.from_thread.start_blocking_portal() as portal:  # in a thread: this one may run an event loop
            status, body = portal.call(exchange)
    except _NOT_SENT as error:
        raise _unreachable(f"{url} cannot be reached ({type(error).__name__}). Nothing was sent.") from None
    except (httpx.HTTPError, TimeoutError) as error:
        raise _unreachable(f"{url} did not answer ({type(error).__name__}). {UNKNOWN}") from None
    try:
        value = json_module.loads(body)
    except (ValueError, RecursionError):
        value = None
    if status in (200, 201):
        return value
    raise _refusal(status, value)


async def _exchange(method: str, url: str, *, json: Any, timeout: float, auth: httpx.Auth | None) -> tuple[int, bytes]:
    """Send a request, and return the status and the body of the answer.

    Raises:
        TimeoutError: the whole answer was not there in time.
        UnexpectedAnswer: the body is too long.
    """
    with anyio.fail_after(TOTAL_SECONDS):
        async with (
            httpx.AsyncClient(timeout=timeout, auth=auth) as client,
            client.stream(method, url, json=json) as response,
        ):
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UnexpectedAnswer()
            return response.status_code, body


def _unreachable(message: str) -> ServerUnreachable:
    return ServerUnreachable(message, hint=ServerUnreachable.default_hint)


def _refusal(status: int, value: Any) -> AmeshError:
    code = value.get("error") if isinstance(value, dict) else None
    if isinstance(code, str) and code in _REFUSALS and _REFUSALS[code].status == status:
        return _REFUSALS[code]()
    shown = clean_line(code)[:80] if isinstance(code, str) else ""
    what = f"The server answered with the status {status}{f' ({shown})' if shown else ''}."
    if status >= 500:
        return _unreachable(f"{what} {UNKNOWN}")
    if shown and status in (401, 403, 409, 429):
        return EnrollmentRefused(f"{what} Nothing was changed.", hint=EnrollmentRefused.default_hint)
    return UnexpectedAnswer(f"{what} {UNKNOWN}", hint=UnexpectedAnswer.default_hint)
