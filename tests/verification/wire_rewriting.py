"""The WSGI application behind something that rewrites the query, as Apache's mod_rewrite does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.wsgi import application as project


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Set QUERY_STRING to the header X-Rewrite, if there is one."""
    environ["QUERY_STRING"] = environ.get("HTTP_X_REWRITE", environ["QUERY_STRING"])
    return project(environ, start_response)
