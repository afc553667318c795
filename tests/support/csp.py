"""A strict policy for what a page may load (CSP), as a project may have it, with a nonce in the way of Django 6.0 and newer."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse

POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}' 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that sends the policy with each page."""

    def respond(request: HttpRequest) -> HttpResponse:
        request.csp_test_nonce = secrets.token_urlsafe(16)  # type: ignore[attr-defined]
        response = get_response(request)
        response["Content-Security-Policy"] = POLICY.format(nonce=request.csp_test_nonce)  # type: ignore[attr-defined]
        return response

    return respond


def nonce(request: HttpRequest) -> dict[str, Any]:
    """Return ``csp_nonce`` for the templates, as ``django.template.context_processors.csp`` does."""
    return {"csp_nonce": getattr(request, "csp_test_nonce", "")}
