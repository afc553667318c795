"""The raw target of a request, and the checks that Django reads the target as it was signed (design.md, decision 2)."""

from __future__ import annotations

import codecs
from urllib.parse import quote, unquote_to_bytes

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.utils.encoding import repercent_broken_unicode

from amesh_django.conf import AmeshSettings

#: Characters that stay literal when a path is quoted again (RFC 3986 §3.3: pchar and "/").
_PATH_LITERALS = "/:@!$&'()*+,;=~-._"


def raw_target(request: HttpRequest, settings: AmeshSettings) -> str:
    """Return the request target as the client sent it: path with its percent-encoding, ``?`` and query.

    The path comes from ``raw_path`` (ASGI), ``RAW_URI`` (gunicorn) or ``REQUEST_URI`` (mod_wsgi, uWSGI, waitress). If the server
    sets none of these (``runserver``), the decoded path is quoted again, and an encoded slash looks like a plain one.

    Args:
        request: Django's request.
        settings: name the prefixes that a proxy adds to the path or strips from it.
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
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")  # decoded by the server
            query = environ.get("QUERY_STRING", "")
            target = quote(path, safe=_PATH_LITERALS) + (f"?{query}" if query else "")
    added, stripped = settings.PROXY_ADDED_PREFIX.rstrip("/"), settings.PROXY_STRIPPED_PREFIX.rstrip("/")
    if added and target.startswith((f"{added}/", f"{added}?")):
        target = target[len(added) :]
    return stripped + target


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


def is_routed_as_sent(request: HttpRequest) -> bool:
    """Return True if the path by which Django chooses the view is the signed path.

    Django's routes begin after the script name, which a header can set (Daphne-Root-Path, gunicorn's SCRIPT_NAME). So the script
    name must be that of FORCE_SCRIPT_NAME, and the rest must be the path on the wire.
    """
    if request.META.get("SCRIPT_NAME", "").rstrip("/") != (django_settings.FORCE_SCRIPT_NAME or "").rstrip("/"):
        return False
    scope = getattr(request, "scope", None)
    if scope is not None:
        raw = (scope.get("raw_path") or b"").decode("latin-1")
    else:
        raw = request.META.get("RAW_URI") or request.META.get("REQUEST_URI") or ""
    if not raw:  # raw_target() made the target from the decoded path
        return True
    sent, routed = unquote_to_bytes(raw.partition("?")[0]), (request.path, request.path_info)
    if sent.decode("utf-8", "replace") in routed or repercent_broken_unicode(sent).decode() in routed:
        return True
    return sent.decode("latin-1") in routed  # Django's AsyncClient, in tests
