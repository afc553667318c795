"""From a Django request to what was signed: the raw target, the header, the raw body (design.md, decision 2)."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from typing import IO, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse, UnreadablePostError
from django.utils.encoding import repercent_broken_unicode

from amesh_django.protocol.canonical import EMPTY_BODY_HASH
from amesh_django.protocol.errors import (
    AllowListIntegrityFailure,
    BodyParserOrderingError,
    BodyStorageUnavailable,
    PayloadTooLarge,
    RequestError,
    Unauthorized,
)
from amesh_django.protocol.header import SCHEME

from . import activity
from .conf import AmeshSettings, amesh_settings
from .verification import DRIFT_SECONDS, VerifiedDevice, default_verifier

logger = logging.getLogger("amesh_django.verification")

_CHUNK = 1 << 16
#: What stays literal in a path that has to be quoted again (RFC 3986 §3.3: pchar and "/").
_PATH_LITERALS = "/:@!$&'()*+,;=~-._"


def raw_target(request: HttpRequest, settings: AmeshSettings) -> str:
    """The request target as the client sent it: path with its percent-encoding, ``?`` and query.

    ASGI ``raw_path``; WSGI ``RAW_URI`` (gunicorn) or ``REQUEST_URI`` (mod_wsgi, uWSGI, waitress). Where the server gives
    neither (``runserver``), the decoded path is quoted again, and an encoded slash can't be told from a plain one.
    """
    scope = getattr(request, "scope", None)
    if scope is not None:
        raw_path = scope.get("raw_path")
        path = raw_path.decode("latin-1").partition("?")[0] if raw_path else quote(scope["path"], safe=_PATH_LITERALS)
        query = scope.get("query_string", b"")
        query = query.decode("latin-1") if isinstance(query, bytes) else query
        target = f"{path}?{query}" if query else path
    else:
        environ = request.META
        target = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
        if not target:
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")  # which Django has decoded
            query = environ.get("QUERY_STRING", "")
            target = quote(path, safe=_PATH_LITERALS) + (f"?{query}" if query else "")
    added, stripped = settings.PROXY_ADDED_PREFIX.rstrip("/"), settings.PROXY_STRIPPED_PREFIX.rstrip("/")
    if added and target.startswith((f"{added}/", f"{added}?")):
        target = target[len(added) :]
    return stripped + target


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A body on its way to disk; closes itself with the request."""

    def __del__(self) -> None:
        self.close()


def _keep(spool: _Spool, chunk: bytes) -> None:
    try:
        spool.write(chunk)
    except OSError as error:
        place = django_settings.FILE_UPLOAD_TEMP_DIR or tempfile.gettempdir()
        raise BodyStorageUnavailable(
            f"The body can't be kept in {place} ({error.strerror}). Make room there, or set FILE_UPLOAD_TEMP_DIR to another folder."
        ) from None


def _declared_length(request: HttpRequest) -> int | None:
    try:
        return max(0, int(request.META["CONTENT_LENGTH"]))
    except (KeyError, ValueError):
        return None


def _body_stream(request: HttpRequest, declared: int | None) -> IO[bytes] | None:
    """What the body is read from; None where there is none. A chunked one only where the server decodes it."""
    if hasattr(request, "scope"):
        return request._stream
    chunked = "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower()
    if declared is None and chunked and request.META.get("wsgi.input_terminated"):
        return request.META["wsgi.input"]  # type: ignore[no-any-return]
    return request._stream if declared else None


def body_hash(request: HttpRequest, limit: int) -> str:
    """SHA-256 of the raw body, lower-case hex; the body is spooled, and parsers after this still get it.

    Raises:
        PayloadTooLarge: more than *limit* bytes, declared or real.
        BodyParserOrderingError: something has consumed the body already.
        BodyStorageUnavailable: it can't be kept.
        Unauthorized: there is less of it than was declared.
    """
    declared = _declared_length(request)
    if declared is not None and declared > limit:
        raise PayloadTooLarge()
    if hasattr(request, "_body"):  # somebody asked for request.body, which keeps it
        if len(request.body) > limit:
            raise PayloadTooLarge()
        return hashlib.sha256(request.body).hexdigest()
    if request._read_started:  # type: ignore[attr-defined]
        raise BodyParserOrderingError()
    stream = _body_stream(request, declared)
    if stream is None:
        return EMPTY_BODY_HASH
    digest, length, spool = hashlib.sha256(), 0, None
    if not (hasattr(request, "scope") and stream.seekable()):  # ASGI: Django has spooled it already
        spool = _Spool(
            max_size=django_settings.FILE_UPLOAD_MAX_MEMORY_SIZE, dir=django_settings.FILE_UPLOAD_TEMP_DIR or None
        )
    try:
        while chunk := stream.read(_CHUNK):
            length += len(chunk)
            if length > limit:
                raise PayloadTooLarge()
            digest.update(chunk)
            if spool is not None:
                _keep(spool, chunk)
    except (OSError, UnreadablePostError):
        raise Unauthorized(reason="body_unreadable") from None
    if declared is not None and length != declared:
        raise Unauthorized(reason="body_length_mismatch")
    if declared is None and length:  # chunked: the parsers go by the length
        request.META["CONTENT_LENGTH"] = str(length)
    kept = spool if spool is not None else stream
    kept.seek(0)
    request._stream = cast("BinaryIO", kept)
    return digest.hexdigest()


def _query_has_one_reading(request: HttpRequest) -> bool:
    """Django decodes the query by the charset of Content-Type, which is not signed; only UTF-8 is what was signed."""
    charset = (request.content_params or {}).get("charset", "utf-8").lower().replace("_", "-")
    return charset in ("utf-8", "utf8") or "%" not in request.META.get("QUERY_STRING", "")


def _settings() -> AmeshSettings:
    try:
        return amesh_settings()
    except ImproperlyConfigured as error:
        raise AllowListIntegrityFailure(str(error), reason="improperly_configured") from error


def _is_routed_as_sent(request: HttpRequest) -> bool:
    """Django's routes begin after the script name, and a header can set that: Daphne-Root-Path, gunicorn's SCRIPT_NAME.

    So it counts only where the project says it (FORCE_SCRIPT_NAME), and what is left must be the path on the wire.
    """
    if request.META.get("SCRIPT_NAME", "").rstrip("/") != (django_settings.FORCE_SCRIPT_NAME or "").rstrip("/"):
        return False
    scope = getattr(request, "scope", None)
    if scope is not None:
        raw = (scope.get("raw_path") or b"").decode("latin-1")
    else:
        raw = request.META.get("RAW_URI") or request.META.get("REQUEST_URI") or ""
    if not raw:  # the target was made from the decoded path
        return True
    sent, routed = unquote_to_bytes(raw.partition("?")[0]), (request.path, request.path_info)
    if sent.decode("utf-8", "replace") in routed or repercent_broken_unicode(sent).decode() in routed:
        return True
    return sent.decode("latin-1") in routed  # Django's AsyncClient, in tests


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
        if not _query_has_one_reading(request):
            raise Unauthorized(reason="ambiguous_target (charset of Content-Type)", device_id=device.device_id)
        if not _is_routed_as_sent(request):
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
