"""From a Django request to what was signed: the raw target, the header, the raw body (design.md, decision 2)."""

from __future__ import annotations

import logging
from typing import cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse

from amesh_django.conf import AmeshSettings, amesh_settings
from authmesh.protocol.errors import (
    AllowListIntegrityFailure,
    RequestError,
    Unauthorized,
)
from authmesh.protocol.header import SCHEME

from . import VerifiedDevice, activity
from .body import body_hash
from .lookup import default_verifier
from .target import is_routed_as_sent, query_has_one_reading, raw_target
from .verifier import DRIFT_SECONDS

logger = logging.getLogger("amesh_django.verification")


def _settings() -> AmeshSettings:
    try:
        return amesh_settings()
    except ImproperlyConfigured as error:
        raise AllowListIntegrityFailure(str(error), reason="improperly_configured") from error


def authenticate(request: HttpRequest) -> VerifiedDevice:
    """Verify a request once, log what came of it, and attach the device as ``request.amesh``.

    Middleware, decorator and REST framework class all come here, and a request that passes several is verified once.

    Raises:
        RequestError: it is refused.
    """
    request = cast("HttpRequest", getattr(request, "_request", request))  # a view below REST framework's api_view
    done: VerifiedDevice | None = request.__dict__.get("amesh")
    if isinstance(done, VerifiedDevice):
        return done
    try:
        settings = _settings()
        request.get_host()  # raises DisallowedHost, which Django answers with 400
        device = default_verifier().verify(
            request.method or "",
            raw_target(request, settings),
            request.META.get("HTTP_AUTHORIZATION"),
            lambda: body_hash(request, settings.MAX_BODY_BYTES),
        )
        if not query_has_one_reading(request):
            raise Unauthorized(reason="ambiguous_target (charset of Content-Type)", device_id=device.device_id)
        if not is_routed_as_sent(request):
            raise Unauthorized(
                reason="ambiguous_target (script name, see FORCE_SCRIPT_NAME)", device_id=device.device_id
            )
    except RequestError as error:
        if error.status >= 500:
            logger.error("%s: %s (%s). %s", error.code, error.reason, _shown(request), error)
        else:
            logger.warning(
                "%s: %s (%s, device %s)", error.code, error.reason, _shown(request), error.device_id or "unknown"
            )
        raise
    if abs(device.clock_skew) > DRIFT_SECONDS:
        logger.warning("clock_drift_warning: device %s is off by %d s", device.device_id, device.clock_skew)
    request.amesh = device  # type: ignore[attr-defined]
    activity.seen(device)
    return device


def _shown(request: HttpRequest) -> str:
    """Method and path for the log: no query, which may hold secrets, and nothing that breaks a line."""
    return ascii(f"{request.method} {request.path[:200]}")


def error_response(error: RequestError) -> JsonResponse:
    """The answer of protocol.md §3. A 401 names the scheme (RFC 9110 §11.6.1)."""
    response = JsonResponse({"error": error.code}, status=error.status, headers={"Cache-Control": "no-store"})
    if error.status == 401:
        response.headers["WWW-Authenticate"] = SCHEME
    return response


def accept(request: HttpRequest) -> JsonResponse | None:
    """What middleware and decorator do: None if the request is let in, else the response that refuses it.

    A verified request needs no CSRF token: no browser can be made to send such a signature.
    """
    try:
        authenticate(request)
    except RequestError as error:
        return error_response(error)
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
    return None
