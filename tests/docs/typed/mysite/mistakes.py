"""What a type checker must notice. Each line names the code of its error."""

from django.http import HttpRequest
from rest_framework.views import APIView

from amesh_django.conf import AmeshDict
from amesh_django.drf import DeviceRequest, HasDevicePermission
from amesh_django.verification import DeviceHttpRequest, verified_device

UNKNOWN: AmeshDict = {"CLOCKSKEW": 1}  # error: typeddict-unknown-key
WRONG: AmeshDict = {"PROTECT": 1}  # error: typeddict-item


class Shell(APIView):
    permission_classes = [HasDevicePermission(1)]  # error: arg-type

    def get(self, request: DeviceRequest) -> None:
        print(request.auth.name)  # error: attr-defined


def name(request: DeviceHttpRequest) -> None:
    print(request.amesh.name)  # error: attr-defined


def number(request: HttpRequest) -> int:
    return verified_device(request).device_id  # error: return-value
