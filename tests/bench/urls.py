"""One view, five times: open, and behind each way of authentication. All else is the same."""

from __future__ import annotations

from typing import Any

from django.urls import path
from rest_framework.authentication import TokenAuthentication
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.permissions import HasAPIKey
from rest_framework_simplejwt.authentication import JWTAuthentication

from amesh_django.drf import AmeshAuthentication, IsTrustedDevice


class Reading(APIView):
    """Takes a small JSON document and answers with one."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def post(self, request: Request) -> Response:
        return Response({"from": str(request.user), "value": request.data.get("value")})


def _behind(authentication: list[Any], permission: Any) -> Any:
    return Reading.as_view(authentication_classes=authentication, permission_classes=[permission])


urlpatterns = [
    path("open/", Reading.as_view()),
    path("token/", _behind([TokenAuthentication], IsAuthenticated)),
    path("jwt/", _behind([JWTAuthentication], IsAuthenticated)),
    path("api-key/", _behind([], HasAPIKey)),
    path("amesh/", _behind([AmeshAuthentication], IsTrustedDevice)),
]
