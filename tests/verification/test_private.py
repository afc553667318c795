"""The private parts of Django's request: one module uses them, and this release of Django has them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from rest_framework.request import Request

import amesh_django
from amesh_django.verification import private

NAMES = {"_body", "_dont_enforce_csrf_checks", "_read_started", "_request", "_stream"}
ROOT = Path(amesh_django.__file__).parent


def wsgi(body: bytes = b"hello") -> HttpRequest:
    environ = {"REQUEST_METHOD": "POST", "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    return WSGIRequest({**environ, "SERVER_NAME": "testserver", "SERVER_PORT": "80"})


def asgi(body: bytes = b"hello") -> HttpRequest:
    return ASGIRequest({"type": "http", "method": "POST", "path": "/", "headers": []}, BytesIO(body))


def private_names(path: Path) -> set[str]:
    """Return the private names of a request that a module uses, as an attribute or as a text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found & NAMES


def test_one_module_uses_them() -> None:
    users = {str(path.relative_to(ROOT)): names for path in ROOT.rglob("*.py") if (names := private_names(path))}
    assert users == {"verification/private.py": NAMES}


@pytest.mark.parametrize("make", [wsgi, asgi])
def test_the_stream_of_a_body(make: Callable[[], HttpRequest]) -> None:
    request = make()
    assert not private.keeps_body(request)
    assert not private.is_read(request)
    assert private.stream_of(request).read() == b"hello"
    private.replace_stream(request, BytesIO(b"other"))
    assert not private.is_read(request)
    assert request.body == b"other"
    assert private.keeps_body(request)


@pytest.mark.parametrize("make", [wsgi, asgi])
def test_a_body_that_something_has_begun_to_read(make: Callable[[], HttpRequest]) -> None:
    request = make()
    request.read(1)
    assert private.is_read(request)
    assert not private.keeps_body(request)


def test_the_request_inside_that_of_rest_framework() -> None:
    request = wsgi()
    assert private.django_request(Request(request)) is request
    assert private.django_request(request) is request


def test_the_csrf_check_can_be_skipped() -> None:
    check = CsrfViewMiddleware(lambda request: HttpResponse())

    def rejection(request: HttpRequest) -> object:
        check.process_request(request)
        return check.process_view(request, lambda request: HttpResponse(), (), {})

    assert rejection(wsgi()) is not None
    request = wsgi()
    private.skip_csrf_check(request)
    assert rejection(request) is None
