"""Django REST framework: authentication by signed request, permissions by device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, ErrorDetail
from rest_framework.permissions import BasePermission, OperationHolderMixin
from rest_framework.request import Request

from authmesh.protocol.errors import RequestError
from authmesh.protocol.header import SCHEME, is_amesh

from .verification import VerifiedDevice
from .verification.request import authenticate, logger
from .verification.users import DeviceUser

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser


class AmeshRefused(APIException):
    """A refusal with status and body of protocol.md §3."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(code=code)
        self.detail = {"error": ErrorDetail(code, code)}
        self.status_code = status
        if status == 401:
            self.auth_header = SCHEME


class AmeshAuthentication(BaseAuthentication):
    """``authentication_classes``: the user is the Django user mapped to the device, else a DeviceUser; ``request.auth`` and
    ``request.amesh`` are the VerifiedDevice. Without an AuthMesh header the next class gets its turn.
    """

    def authenticate(self, request: Request) -> tuple[Any, VerifiedDevice] | None:
        """See BaseAuthentication.

        Raises:
            AmeshRefused: there is an AuthMesh header, and the request is refused.
        """
        plain: HttpRequest = request._request
        if getattr(plain, "amesh", None) is None and not is_amesh(plain.META.get("HTTP_AUTHORIZATION", "")):
            return None
        try:
            device = authenticate(plain)
        except RequestError as error:
            raise AmeshRefused(error.code, error.status) from error
        return self.get_user(device), device

    def get_user(self, device: VerifiedDevice) -> AbstractBaseUser | DeviceUser:
        """The user as which the device acts. Override it for a mapping of your own.

        Raises:
            AmeshRefused: its mapped user is not active, or gone.
        """
        if device.user_id is None:
            return DeviceUser(device)
        user = get_user_model()._default_manager.filter(pk=device.user_id).first()
        if user is None or not user.is_active:
            logger.warning("unauthorized: user_inactive (device %s)", device.device_id)
            raise AmeshRefused("unauthorized", 401)
        return user

    def authenticate_header(self, request: Request) -> str:
        """The scheme, so that a refusal is 401."""
        return SCHEME


def _device(request: Any) -> VerifiedDevice | None:
    found = getattr(request, "auth", None)
    if not isinstance(found, VerifiedDevice):
        found = getattr(getattr(request, "_request", request), "amesh", None)
    return found if isinstance(found, VerifiedDevice) else None


class IsTrustedDevice(BasePermission):
    """Only devices of the allow list; people and other credentials are refused."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """See BasePermission."""
        return _device(request) is not None


class HasDevicePermission(OperationHolderMixin, BasePermission):
    """Only devices to which the allow list grants a permission: ``permission_classes = [HasDevicePermission("shell")]``.

    Args:
        name: of the permission.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> HasDevicePermission:
        """REST framework calls what stands in ``permission_classes``."""
        return self

    def has_permission(self, request: Request, view: Any) -> bool:
        """See BasePermission."""
        device = _device(request)
        return device is not None and device.has_permission(self.name)
