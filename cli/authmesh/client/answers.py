"""One small request to a server's ``amesh/`` address, and its JSON answer, or the error that the server's code stands for."""

from __future__ import annotations

import json as json_module
from typing import Any

import httpx

from authmesh.protocol.display import clean_line
from authmesh.protocol.enrollment_errors import (
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
        ServerUnreachable: there was no answer, or a status of 500 or more. Trying again may help.
        RequestError: the server refused; its code has the reason.
        UnexpectedAnswer: the answer is not part of the protocol.
    """
    try:
        with (
            httpx.Client(timeout=timeout, auth=auth) as client,
            client.stream(method, url, json=json) as response,
        ):
            body = b""
            for chunk in response.iter_bytes(MAX_ANSWER_BYTES):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UnexpectedAnswer()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        host = httpx.URL(url).host
        raise ServerUnreachable(
            f"{host} did not answer ({type(error).__name__}). Nothing was stored.", hint=ServerUnreachable.default_hint
        ) from None
    try:
        value = json_module.loads(body)
    except (ValueError, RecursionError):
        value = None
    if response.status_code in (200, 201):
        return value
    raise _refusal(response.status_code, value)


def _refusal(status: int, value: Any) -> AmeshError:
    code = value.get("error") if isinstance(value, dict) else None
    if isinstance(code, str) and code in _REFUSALS and _REFUSALS[code].status == status:
        return _REFUSALS[code]()
    shown = clean_line(code)[:80] if isinstance(code, str) else ""
    what = f"The server answered with the status {status}{f' ({shown})' if shown else ''}."
    if status >= 500:
        return ServerUnreachable(f"{what} Nothing was stored.", hint=ServerUnreachable.default_hint)
    if shown and status in (401, 403, 409, 429):
        return EnrollmentRefused(f"{what} Nothing was changed.", hint=EnrollmentRefused.default_hint)
    return UnexpectedAnswer(f"{what} Nothing was stored.", hint=UnexpectedAnswer.default_hint)
