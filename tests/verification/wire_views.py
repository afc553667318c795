"""The views of the wire tests, one for each way to protect a view, two middlewares, and their URLs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import IO, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponseRedirect, JsonResponse
from django.urls import URLPattern, re_path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.authentication import BasicAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django import server as enrolment
from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, IsTrustedDevice

enrolment.BOOTSTRAP_SECONDS = float(os.environ.get("TEST_BOOTSTRAP_SECONDS", enrolment.BOOTSTRAP_SECONDS))

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def digest(stream: IO[bytes] | HttpRequest) -> dict[str, Any]:
    """Return length and SHA-256 of the rest of a stream, without keeping it in memory."""
    found, length = hashlib.sha256(), 0
    while chunk := stream.read(1 << 16):
        found.update(chunk)
        length += len(chunk)
    return {"length": length, "sha256": found.hexdigest()}


def describe(request: HttpRequest) -> dict[str, Any]:
    """Return what a view sees of a request and of the device that signed it."""
    device = getattr(request, "amesh", None)
    found: dict[str, Any] = {
        "device": device and {"id": device.device_id, "name": device.friendly_name, "role": device.role},
        "method": request.method,
        "path": request.path,
        "query": dict(request.GET.lists()),
    }
    if request.content_type in FORMS:
        files = {name: {"name": file.name, **digest(file)} for name, file in request.FILES.items()}
        return {**found, "fields": dict(request.POST.lists()), "files": files}
    return {**found, "body": digest(request)}


def plain(request: HttpRequest) -> JsonResponse:
    return JsonResponse(describe(request))


def moved(request: HttpRequest) -> HttpResponseRedirect:
    return HttpResponseRedirect("/middleware/sync/here")


async def plain_async(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await sync_to_async(describe)(request))


@device_required
def decorated(request: HttpRequest) -> JsonResponse:
    return JsonResponse(describe(request))


@device_required
async def decorated_async(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await sync_to_async(describe)(request))


@method_decorator(device_required, name="dispatch")
class AsyncClass(View):
    """A class-based view with async handlers: its `dispatch` is a plain function that returns a coroutine."""

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> JsonResponse:
        return JsonResponse(await sync_to_async(describe)(request))

    post = get


@method_decorator(device_required, name="dispatch")
class SyncClass(View):
    """A class-based view with sync handlers."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> JsonResponse:
        return JsonResponse(describe(request))

    post = get


class Rest(APIView):
    """REST framework, with another authentication class after ours."""

    authentication_classes = (AmeshAuthentication, BasicAuthentication)
    permission_classes = (IsTrustedDevice | IsAuthenticated,)

    def handle(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        plain: HttpRequest = request._request
        found: dict[str, Any] = {"user": str(request.user)}
        if plain.content_type == "application/json":
            found["data"] = request.data
        elif plain.content_type in FORMS and request.method == "POST":
            request.data  # noqa: B018 -- REST framework's own parsers, before Django's
        return Response({**describe(plain), **found})

    get = post = put = patch = delete = handle


class _Middleware:
    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self):
            return self._acall(request)
        self.before(request)
        return self.label(self.get_response(request))

    async def _acall(self, request: HttpRequest) -> Any:
        self.before(request)
        return self.label(await self.get_response(request))

    def before(self, request: HttpRequest) -> None:
        pass

    def label(self, response: Any) -> Any:
        return response


class Labeled(_Middleware):
    """Adds the process ID to each response, so that a test knows the worker that sent it."""

    def label(self, response: Any) -> Any:
        response.headers["X-Worker"] = str(os.getpid())
        return response


class Meddler(_Middleware):
    """Runs before our middleware and reads the body in the way that the header X-Meddle names."""

    def before(self, request: HttpRequest) -> None:
        match request.headers.get("X-Meddle"):
            case "body":
                len(request.body)
            case "read":
                request.read(1)
            case "post":
                len(request.POST)


def doors() -> list[URLPattern]:
    """Return URL patterns in which each view handles its path and everything below it."""
    views: dict[str, Any] = {
        "middleware/sync": plain,
        "middleware/async": plain_async,
        "middleware/open": plain,
        "middleware/moved": moved,
        "decorator/sync": decorated,
        "decorator/async": decorated_async,
        "decorator/async-class": AsyncClass.as_view(),
        "decorator/sync-class": SyncClass.as_view(),
        "drf": Rest.as_view(),
        "open": csrf_exempt(plain),
    }
    return [re_path(rf"^{path}(?:/[\s\S]*)?$", view) for path, view in views.items()]


urlpatterns = doors()
