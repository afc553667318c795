"""The entrance of verification: Django's request is verified once, the result is logged and becomes ``request.amesh``."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Collection, Generator, Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse
from django.utils.cache import patch_vary_headers

from amesh_django import log
from amesh_django.conf import AmeshSettings, amesh_settings
from amesh_django.signals import request_accepted, request_refused, request_routed
from amesh_django.spelling import manage_py
from authmesh.protocol.allow_list import TARGET
from authmesh.protocol.check import EXPIRES_HEADER, EXPIRES_SOON_SECONDS, ROTATE_HEADER, ROTATE_REQUESTED
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import AllowListIntegrityFailure, RequestError, ScopeMissing, Unauthorized
from authmesh.protocol.header import SCHEME

from . import activity, private
from .body import body_hash, check_before_lookup, late_body_hash
from .lookup import default_verifier
from .target import is_routed_as_sent, query_has_one_reading, raw_target
from .types import VerifiedDevice
from .users import mapped_user
from .verifier import DRIFT_SECONDS, ROLES, Verifier

logger = logging.getLogger("amesh_django.verification")

#: Where a WSGI server finds the device ID for its access log. A client cannot set it: headers begin with ``HTTP_``.
ENVIRON_KEY = "amesh.device_id"

#: Seconds after which a client may try again if a part of the server is down.
RETRY_AFTER_SECONDS = 5

#: Where an accepted request has its device until :func:`routed` is called, or the request is refused after all.
_UNROUTED = "_amesh_unrouted"


def _configured() -> tuple[AmeshSettings, Verifier]:
    try:
        return amesh_settings(), default_verifier()
    except ImproperlyConfigured as error:
        raise AllowListIntegrityFailure(str(error), reason="improperly_configured") from error


def authenticate(request: HttpRequest, *, is_routed_later: bool = False) -> VerifiedDevice:
    """Verify a request, log the result, and set ``request.amesh``.

    Middleware, decorator and REST framework class all call this function. A request that passes several is verified once.

    Args:
        request: a request of Django, or of REST framework.
        is_routed_later: True if the caller calls :func:`routed` itself, because it may refuse the request, or the view is not known yet.

    Returns:
        The device that signed the request.

    Raises:
        RequestError: the request is rejected. The package's docstring lists the subclasses.
        DisallowedHost: the Host header is not in ``ALLOWED_HOSTS``. Django answers that with 400.
    """
    request = private.django_request(request)
    done: VerifiedDevice | None = request.__dict__.get("amesh")
    if isinstance(done, VerifiedDevice):
        return done
    start = time.perf_counter()
    device = _verified(request, ROLES)
    if abs(device.clock_skew) > DRIFT_SECONDS:
        members = {
            "event": "clock_drift_warning",
            "device_id": device.device_id,
            "device_name": clean(device.friendly_name),
        }
        logger.warning(
            "clock_drift_warning: device %s is off by %d s", device.device_id, device.clock_skew, extra=members
        )
    request.amesh = device  # type: ignore[attr-defined]
    request.META[ENVIRON_KEY] = device.device_id
    log.remember(device.device_id, clean(device.friendly_name))
    request_accepted.send_robust(sender=None, request=request, device=device, seconds=time.perf_counter() - start)
    request.__dict__[_UNROUTED] = device
    if not is_routed_later:
        routed(request)
    return device


def routed(request: HttpRequest) -> None:
    """Note that a request was accepted, and where it leads. Calling it again changes nothing.

    Args:
        request: Django's request.
    """
    device: VerifiedDevice | None = request.__dict__.pop(_UNROUTED, None)
    if device is not None:
        route = _route(request)
        activity.seen(device, request, route)
        request_routed.send_robust(sender=None, request=request, device=device, route=route)


def _route(request: HttpRequest) -> str:
    """Return the route of the view, not the path, which may hold secrets. Empty if there is no view, or it is not known yet."""
    return request.resolver_match.route if request.resolver_match is not None else ""


def authenticate_target(request: HttpRequest) -> VerifiedDevice:
    """Verify the question of a server to its hub, which has the server as a target: for the view ``feed/pull``, and no other one.

    ``request.amesh`` is not set, and no user: to the project, the request is one that nobody has signed.

    Args:
        request: Django's request.

    Returns:
        The target that signed the request.

    Raises:
        RequestError: the request is rejected, as for :func:`authenticate`. A controller gets ``role_rejected``.
        DisallowedHost: as for :func:`authenticate`.
    """
    device = _verified(request, (TARGET,))
    request.META[ENVIRON_KEY] = device.device_id
    log.remember(device.device_id, clean(device.friendly_name))
    return device


def _verified(request: HttpRequest, roles: Collection[str]) -> VerifiedDevice:
    """Return the device of one of *roles* that signed a request. A rejection is logged.

    Raises:
        RequestError, DisallowedHost: as for :func:`authenticate`.
    """
    try:
        settings, verifier = _configured()
        request.get_host()
        device = verifier.verify(
            request.method or "",
            raw_target(request, settings),
            request.META.get("HTTP_AUTHORIZATION"),
            lambda: body_hash(request, settings.MAX_BODY_BYTES),
            before_lookup=lambda: check_before_lookup(request, settings.MAX_BODY_BYTES),
            late_body_hash=lambda: late_body_hash(request, settings.MAX_BODY_BYTES),
            roles=roles,
        )
        _must_have_one_meaning(request, settings, device)
    except RequestError as error:
        refused(request, error)
        raise
    return device


def _must_have_one_meaning(request: HttpRequest, settings: AmeshSettings, device: VerifiedDevice) -> None:
    """Reject a genuine request that Django would understand in another way than it was signed."""
    if not query_has_one_reading(request):
        detail = "charset of Content-Type"
    elif not is_routed_as_sent(request, settings):
        detail = "script name, see FORCE_SCRIPT_NAME and PROXY_STRIPPED_PREFIX"
    else:
        return
    raise Unauthorized(
        reason="ambiguous_target", detail=detail, device_id=device.device_id, device_name=device.friendly_name
    )


def refused(request: HttpRequest, error: RequestError) -> None:
    """Write one line to the log, why a request is rejected and which, and send the signal ``request_refused``.

    Args:
        request: Django's request.
        error: the reason.
    """
    reason = f"{error.reason} ({error.detail})" if error.detail else error.reason
    members = {
        "event": "request_refused",
        "code": error.code,
        "reason": error.reason,
        "device_id": error.device_id,
        "device_name": clean(error.device_name) if error.device_name is not None else None,
        "method": request.method,
        "path": request.path[:200].encode("unicode_escape").decode("ascii"),
        "address": request.META.get("REMOTE_ADDR"),
    }
    if error.status >= 500:
        logger.error("%s: %s (%s). %s", error.code, reason, _shown(request), error.text(manage_py), extra=members)
    else:
        device = error.device_id or "unknown"
        logger.warning("%s: %s (%s, device %s)", error.code, reason, _shown(request), device, extra=members)
    device_seen: VerifiedDevice | None = request.__dict__.pop(_UNROUTED, None)
    if device_seen is not None:  # its signature was accepted
        activity.seen(device_seen, request, _route(request))
    request_refused.send_robust(sender=None, request=request, error=error)


def _shown(request: HttpRequest) -> str:
    """Return method and path for the log: without the query, which may hold secrets, and as one line."""
    return ascii(f"{request.method} {request.path[:200]}")


class _Rejection(JsonResponse):
    """A response that may also be awaited, which gives the response itself."""

    def __await__(self) -> Generator[None, None, JsonResponse]:
        yield from ()
        return self


def error_response(error: RequestError) -> JsonResponse:
    """Return the response of protocol.md §3 to a rejected request. A 401 names the scheme (RFC 9110 §11.6.1), a 429 or 503 when to try again.

    Args:
        error: the reason of the rejection. Only its code and its status reach the caller.
    """
    response = _Rejection({"error": error.code}, status=error.status, headers={"Cache-Control": "no-store"})
    if error.status == 401:
        response.headers["WWW-Authenticate"] = SCHEME
    seconds = RETRY_AFTER_SECONDS if error.status == 503 else error.retry_after
    if seconds is not None:
        response.headers["Retry-After"] = str(seconds)
    return response


def mark(request: HttpRequest, response: Any) -> Any:
    """Complete the response to an accepted request, for the middleware and the decorator, and return it.

    Caches must keep it for this device only. In the last 30 days of its key, the device is told when that expires. It is also told if a
    person asked it to replace its key.

    Args:
        request: the request, with ``request.amesh``.
        response: the response of the view.
    """
    patch_vary_headers(response, ("Authorization",))
    device: VerifiedDevice | None = getattr(request, "amesh", None)
    end = device.expires_at if device is not None else None
    if end is not None and end - time.time() <= EXPIRES_SOON_SECONDS:
        response.headers[EXPIRES_HEADER] = format_time(dt.datetime.fromtimestamp(end, dt.UTC))
    if device is not None and device.rotation_requested:
        response.headers[ROTATE_HEADER] = ROTATE_REQUESTED
    return response


def accept(request: HttpRequest, scopes: Sequence[str] = (), *, is_routed_later: bool = False) -> JsonResponse | None:
    """Verify a request for the middleware or the decorator. An accepted request needs no CSRF token.

    A device that is mapped to a Django user who is not active is rejected, as by the REST framework class.

    Args:
        request: Django's request.
        scopes: scopes, all of which the device must have.
        is_routed_later: as for :func:`authenticate`.

    Returns:
        None if the request is accepted, otherwise the response that rejects it.
    """
    try:
        device = authenticate(request, is_routed_later=True)
    except RequestError as error:
        return error_response(error)
    try:
        mapped_user(device)
        missing = [name for name in scopes if not device.has_scope(name)]
        if missing:
            raise ScopeMissing(detail=" ".join(missing), device_id=device.device_id, device_name=device.friendly_name)
    except RequestError as error:
        refused(request, error)
        request.amesh = None  # type: ignore[attr-defined]
        return error_response(error)
    private.skip_csrf_check(request)
    if not is_routed_later:
        routed(request)
    return None
