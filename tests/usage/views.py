"""Views whose requests are counted."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, DeviceHasScope


def plain(request: HttpRequest, **kwargs: object) -> HttpResponse:
    return HttpResponse("ok")


async def plain_async(request: HttpRequest, **kwargs: object) -> HttpResponse:
    return HttpResponse("ok")


def fails(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a view that fails")


class Rest(APIView):
    authentication_classes = (AmeshAuthentication,)
    permission_classes = (DeviceHasScope,)
    required_scopes = ("orders:read",)

    def get(self, request: Request, number: int) -> Response:
        return Response({})


class RestForUsers(Rest):
    class Authentication(AmeshAuthentication):
        require_user = True

    authentication_classes = (Authentication,)


urlpatterns = [
    path("orders/<int:number>/", plain),
    path("api/", include([path("async/<str:secret>/", plain_async)])),
    path("fails/", fails),
    path("decorated/", device_required(plain)),
    path("decorated-async/", device_required(plain_async)),
    path("write/", device_required(scopes=["orders:write"])(plain)),
    path("rest/<int:number>/", Rest.as_view()),
    path("users/<int:number>/", RestForUsers.as_view()),
]
