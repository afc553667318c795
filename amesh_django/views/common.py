"""What several views need: no transaction of the project, a body of limited size, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.http import HttpRequest, HttpResponse

from amesh_django.verification.request import error_response, refused
from authmesh.protocol.enrollment_errors import MalformedEnrollment
from authmesh.protocol.errors import AllowListIntegrityFailure, AllowListUnavailable, PayloadTooLarge, RequestError

_View = TypeVar("_View", bound=Callable[..., Any])
_T = TypeVar("_T")

#: Largest body of a request to enroll or to rotate, in bytes.
MAX_BODY_BYTES = 16 * 1024
#: Longest Content-Length that is taken for a number.
_MAX_DIGITS = 9


def without_transaction(view: _View) -> _View:
    """Call a view without the transactions of ATOMIC_REQUESTS. They need a database that runs, and a view that reports that it does not.

    A change of the allow list has a transaction of its own, and is tried again.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def refusal(request: HttpRequest, error: RequestError) -> HttpResponse:
    """Log why a request is refused, and return the response. It is a plain one: device_required would wait for one that can be awaited."""
    refused(request, error)
    rejection = error_response(error)
    return HttpResponse(rejection.content, status=rejection.status_code, headers=dict(rejection.items()))


def decided(work: Callable[[], _T]) -> _T:
    """Return the result of *work*. If the settings or the database prevent a decision, the request is rejected.

    Raises:
        AllowListIntegrityFailure: the settings are wrong.
        AllowListUnavailable: the database is down.
    """
    try:
        return work()
    except ImproperlyConfigured as error:
        raise AllowListIntegrityFailure(str(error), reason="improperly_configured") from error
    except (DatabaseError, InterfaceError) as error:
        raise AllowListUnavailable(
            "The database cannot be used, so it is not known whether the list was changed.",
            hint="Check that the database runs.",
            reason=f"database_error ({type(error).__name__})",
        ) from error


def json_body(
    request: HttpRequest, *, limit: int = MAX_BODY_BYTES, malformed: type[RequestError] = MalformedEnrollment
) -> Any:
    """Return the JSON value of a body.

    Args:
        request: the request.
        limit: size of the largest body, in bytes.
        malformed: the error for a body that is not JSON.

    Raises:
        PayloadTooLarge: the body is larger than *limit*.
        RequestError: it is not JSON, or cannot be read.
    """
    declared = request.META.get("CONTENT_LENGTH") or "0"
    if not declared.isdecimal() or len(declared) > _MAX_DIGITS or int(declared) > limit:
        raise PayloadTooLarge()
    try:
        body = request.read(limit + 1)  # a body without a declared length may be of any size
    except Exception as error:  # each server raises errors of its own
        raise malformed(detail=f"the body cannot be read: {type(error).__name__}") from None
    if len(body) > limit:
        raise PayloadTooLarge()
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise malformed() from None
