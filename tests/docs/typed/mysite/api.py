"""Views of REST framework, as in README.md, docs/guide.md and docs/integration.md."""

from django.contrib.auth.models import User
from rest_framework import serializers
from rest_framework.generics import CreateAPIView
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django.drf import (
    AmeshAuthentication,
    AmeshRefused,
    DeviceHasScope,
    DeviceRateThrottle,
    DeviceRequest,
    HasDevicePermission,
    HasDeviceScope,
    IsTrustedDevice,
)
from amesh_django.verification import VerifiedDevice, verified_device
from mysite.authentication import SensorAuthentication


class Hello(APIView):
    authentication_classes = [AmeshAuthentication]
    permission_classes = [IsTrustedDevice]

    def get(self, request: DeviceRequest) -> Response:
        return Response({"hello": request.amesh.friendly_name})


class Notes(APIView):
    authentication_classes = [AmeshAuthentication]
    permission_classes = [IsTrustedDevice]
    throttle_classes = [DeviceRateThrottle]

    def get(self, request: DeviceRequest) -> Response:
        return Response({"device": request.auth.friendly_name, "user": str(request.user)})

    def post(self, request: DeviceRequest) -> Response:
        return Response({"received": request.data}, status=201)


class WriteNote(APIView):
    permission_classes = [HasDevicePermission("notes.write")]

    def post(self, request: DeviceRequest) -> Response:
        if not isinstance(request.data, dict):
            raise AmeshRefused("malformed_note", 400)
        return Response({"by": request.amesh.friendly_name, "text": request.data["text"]}, status=201)


class Erase(APIView):
    permission_classes = [HasDevicePermission("notes.erase") | HasDevicePermission("admin")]

    def post(self, request: Request) -> Response:
        return Response(status=204)


class Either(APIView):
    permission_classes = [~HasDevicePermission("blocked") & IsTrustedDevice | IsAuthenticated]


class Both(APIView):
    permission_classes = [IsAuthenticated, HasDevicePermission("a"), IsTrustedDevice & HasDevicePermission("b")]


class Orders(APIView):
    permission_classes = [DeviceHasScope]
    required_scopes = ["orders:read", "stock:read"]

    def get(self, request: DeviceRequest) -> Response:
        return Response(sorted(request.amesh.scopes))


class Report(APIView):
    permission_classes = [HasDeviceScope("reports:read") | HasDeviceScope("orders:read")]

    def get(self, request: DeviceRequest) -> Response:
        return Response({"may_write": request.amesh.has_scope("orders:write")})


class WhoAmI(APIView):
    authentication_classes = [SensorAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.get_username()})


class Note(serializers.Serializer[User]):
    text = serializers.CharField()


class CreateNote(CreateAPIView[User]):
    """A generic view: its methods are declared with REST framework's Request, so the device comes from verified_device()."""

    serializer_class = Note
    permission_classes = [HasDevicePermission("notes.write") | HasDevicePermission("admin")]

    def create(self, request: Request, *args: object, **kwargs: object) -> Response:
        device: VerifiedDevice = verified_device(request)
        return Response({"by": device.device_id}, status=201)
