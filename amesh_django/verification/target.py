"""The raw target of a request, and the checks that Django reads the target as it was signed (design.md, decision 2)."""

from __future__ import annotations

import codecs
from urllib.parse import quote, unquote_to_bytes

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.utils.encoding import repercent_broken_unicode

from amesh_django.conf import AmeshSettings
from authmesh.protocol.errors import Unauthorized

#: Characters that stay literal when a path is quoted again (RFC 3986 §3.3: pchar and "/").
_PATH_LITERALS = "/:@!$&'()*+,;=~-._"


def raw_target(request: HttpRequest, settings: AmeshSettings) -> str:
    """Return the request target as the client sent it: path with its percent-encoding, ``?`` and query.

    The path comes from ``raw_path`` (ASGI), ``RAW_URI`` (gunicorn) or ``REQUEST_URI`` (mod_wsgi, uWSGI, waitress). If the server
    sets none of these (``runserver``), the decoded path is quoted again, and an encoded slash looks like a plain one.

    Args:
        request: Django's request.
        settings: name the prefixes that a proxy adds to the path or strips from it.

    Raises:
        Unauthorized: the target does not begin with ``PROXY_ADDED_PREFIX``, or Django's query is not that of the request line.
    """
    scope = getattr(request, "scope", None)
    if scope is not None:
        raw_path = scope.get("raw_path")
        path = raw_path.decode("latin-1").partition("?")[0] if raw_path else quote(scope["path"], safe=_PATH_LITERALS)
        query = scope.get("query_string", b"")
        query = query.decode("latin-1") if isinstance(query, bytes) else query
        target = f"{path}?{query}" if query else path
    else:
        query = request.META.get("QUERY_STRING", "")
        target = _wsgi_target(request)
        if not target:
            target = quote(_routed_path(request, settings), safe=_PATH_LITERALS) + (f"?{query}" if query else "")
        elif target.partition("?")[2] != query:
            raise Unauthorized(reason="ambiguous_target", detail="the query of the request line is not QUERY_STRING")
    added, stripped = settings.PROXY_ADDED_PREFIX.rstrip("/"), settings.PROXY_STRIPPED_PREFIX.rstrip("/")
    if added:
        if not target.startswith(f"{added}/"):
            raise Unauthorized(reason="ambiguous_target", detail="the path lacks PROXY_ADDED_PREFIX")
        target = target[len(added) :]
    return stripped + target


def _wsgi_target(request: HttpRequest) -> str:
    """Return the target of the request line as a WSGI server passes it on, or an empty string."""
    target: str = request.META.get("RAW_URI") or request.META.get("REQUEST_URI") or ""
    return target


def _routed_path(request: HttpRequest, settings: AmeshSettings) -> str:
    """Return the one of Django's two paths that must be the path on the wire.

    Django's routes are below FORCE_SCRIPT_NAME. A proxy that strips a prefix does not send it, so ``path_info`` is the whole path
    on the wire. Otherwise it is a part of the path on the wire, which is ``path``.
    """
    if settings.PROXY_STRIPPED_PREFIX.rstrip("/") or not (django_settings.FORCE_SCRIPT_NAME or "").rstrip("/"):
        return request.path_info
    return request.path


def query_has_one_reading(request: HttpRequest) -> bool:
    """Return True if Django reads the query as it was signed: as UTF-8.

    Django takes the charset from Content-Type, which is not signed, and decodes the whole query with it, not only what is
    percent-encoded: in ``utf-7``, ``+ACY-`` becomes ``&``, and in ``cp037``, ``&`` becomes another character. So a query in another
    charset must have no percent-encoding, and must be the same text in that charset.
    """
    charset, query = request.encoding or django_settings.DEFAULT_CHARSET, request.META.get("QUERY_STRING", "")
    try:
        if codecs.lookup(charset).name == "utf-8":
            return True
        return "%" not in query and query.encode("latin-1").decode(charset) == query
    except (LookupError, ValueError):  # not an encoding of text, or the query is not valid in it
        return False


def is_routed_as_sent(request: HttpRequest, settings: AmeshSettings) -> bool:
    """Return True if the path by which Django chooses the view is the signed path.

    Django's routes begin after the script name, which a header can set (Daphne-Root-Path, gunicorn's SCRIPT_NAME). So the script
    name must be that of FORCE_SCRIPT_NAME, and exactly one of ``path`` and ``path_info`` is compared with the path on the wire:
    if either were accepted, a header could lead one signed request to two views.

    Args:
        request: Django's request.
        settings: as for :func:`raw_target`.
    """
    if request.META.get("SCRIPT_NAME", "").rstrip("/") != (django_settings.FORCE_SCRIPT_NAME or "").rstrip("/"):
        return False
    scope = getattr(request, "scope", None)
    raw = (scope.get("raw_path") or b"").decode("latin-1") if scope is not None else _wsgi_target(request)
    if not raw:  # raw_target() made the target from the decoded path
        return True
    sent, routed = unquote_to_bytes(raw.partition("?")[0]), _routed_path(request, settings)
    if routed in (sent.decode("utf-8", "replace"), repercent_broken_unicode(sent).decode()):
        return True
    return routed == sent.decode("latin-1")  # Django's AsyncClient, in tests
