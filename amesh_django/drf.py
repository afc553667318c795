"""Django REST framework: authentication by signed requests, and permissions of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

try:
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.exceptions import APIException, ErrorDetail
    from rest_framework.permissions import BasePermission
    from rest_framework.request import Request
except ModuleNotFoundError:
    raise ImportError(
        "amesh_django.drf needs Django REST framework, which is not installed. Run: pip install 'amesh-django[drf]'"
    ) from None

from authmesh.protocol.errors import InvalidInput, RequestError, ScopeMissing, UserRequired
from authmesh.protocol.header import SCHEME, is_amesh
from authmesh.protocol.scopes import required

from .conf import amesh_settings
from .throttling import DeviceRateThrottle
from .verification import DeviceHttpRequest, VerifiedDevice
from .verification.private import django_request
from .verification.request import RETRY_AFTER_SECONDS, authenticate, refused, routed
from .verification.signed import signing_device
from .verification.users import DeviceUser, mapped_user

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

__all__ = [
    "AmeshAuthentication",
    "AmeshRefused",
    "DeviceHasScope",
    "DeviceRateThrottle",
    "DeviceRequest",
    "DeviceUser",
    "HasDevicePermission",
    "HasDeviceScope",
    "IsTrustedDevice",
]


class DeviceRequest(Request, DeviceHttpRequest):
    """The request in a view that only devices may call. For annotations: requests are not objects of this class.

    Attributes:
        amesh, auth: the device that signed the request.
    """

    auth: VerifiedDevice


class AmeshRefused(APIException):
    """A request is rejected, with the status and the body of protocol.md §3.

    Args:
        code: the public code, such as ``unauthorized``.
        status: HTTP status.
        sentence: what the caller should know, as ``detail`` of the body; none by default.
    """

    def __init__(self, code: str, status: int, sentence: str = "") -> None:
        super().__init__(code=code)
        self.detail = {"error": ErrorDetail(code, code)}
        if sentence:
            self.detail["detail"] = ErrorDetail(sentence, code)
        self.status_code = status
        if status == 401:
            self.auth_header = SCHEME
        if status == 503:
            self.wait = RETRY_AFTER_SECONDS  # REST framework's name for Retry-After


class AmeshAuthentication(BaseAuthentication):
    """Authenticates signed requests: for ``authentication_classes``.

    ``request.user`` is the Django user mapped to the device, or a :class:`.DeviceUser` if there is none. ``request.auth`` and
    ``request.amesh`` are the :class:`.VerifiedDevice`. A request without an AuthMesh header is left to the next class.

    Attributes:
        require_user: True rejects a device for which :meth:`get_user` returns a :class:`.DeviceUser`, with 403 ``user_required``.
            None means ``AMESH["REQUIRE_USER"]``.
    """

    require_user: bool | None = None

    def authenticate(self, request: Request) -> tuple[Any, VerifiedDevice] | None:
        """Return user and device of a signed request, or None if the request has no AuthMesh header.

        Raises:
            AmeshRefused: the request has an AuthMesh header and is rejected.
        """
        _vary(request)
        plain = django_request(request)
        if getattr(plain, "amesh", None) is None and not is_amesh(plain.META.get("HTTP_AUTHORIZATION", "")):
            return None
        try:
            device = authenticate(plain, is_routed_later=True)
        except RequestError as error:
            raise AmeshRefused(error.code, error.status) from error
        try:
            user = self.get_user(device)
            if isinstance(user, DeviceUser) and self._requires_user():
                raise UserRequired(device_id=device.device_id, device_name=device.friendly_name)
        except RequestError as error:
            refused(plain, error)
            sentence = str(error) if isinstance(error, UserRequired) else ""
            raise AmeshRefused(error.code, error.status, sentence) from error
        routed(plain)
        return user, device

    def _requires_user(self) -> bool:
        return amesh_settings().REQUIRE_USER if self.require_user is None else self.require_user

    def get_user(self, device: VerifiedDevice) -> AbstractBaseUser | DeviceUser:
        """Return the user as whom the device acts. Override this method for a mapping of your own.

        Raises:
            RequestError: the mapped user is not active or does not exist. The request is rejected with its status and code.
        """
        return mapped_user(device) or DeviceUser(device)

    def authenticate_header(self, request: Request) -> str:
        """Return the scheme, so that REST framework answers 401 instead of 403."""
        return SCHEME


def _vary(request: Request) -> None:
    """Make caches keep the view's response for this caller only, signed or not.

    REST framework adds ``view.headers`` to every response of the view, and joins what they say about ``Vary`` with what is there.
    """
    headers = getattr((getattr(request, "parser_context", None) or {}).get("view"), "headers", None)
    if headers is not None:
        words = [word.strip() for word in headers.get("Vary", "").split(",") if word.strip()]
        if "authorization" not in (word.lower() for word in words):
            headers["Vary"] = ", ".join([*words, "Authorization"])


class IsTrustedDevice(BasePermission):
    """Allows requests that a trusted device has signed; rejects people and other credentials."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return signing_device(request) is not None


def HasDevicePermission(name: str) -> type[IsTrustedDevice]:
    """Return a class for ``permission_classes`` that allows devices to which the allow list grants a permission.

    Args:
        name: name of the permission: ``permission_classes = [HasDevicePermission("shell")]``.
    """

    class Granted(IsTrustedDevice):
        def has_permission(self, request: Request, view: Any) -> bool:
            device = signing_device(request)
            return device is not None and device.has_permission(name)

    Granted.__name__ = Granted.__qualname__ = f"HasDevicePermission({name!r})"
    return Granted


class DeviceHasScope(IsTrustedDevice):
    """Allows devices that have all scopes in ``required_scopes`` of the view. Others get 403 ``insufficient_scope``.

    A view without ``required_scopes`` is a mistake of the project, which raises ImproperlyConfigured.
    """

    message = ScopeMissing.default_message
    code = ScopeMissing.code

    def has_permission(self, request: Request, view: Any) -> bool:
        device = signing_device(request)
        names = self.get_scopes(view)
        return device is not None and all(device.has_scope(name) for name in names)

    def get_scopes(self, view: Any) -> tuple[str, ...]:
        """Return the scopes that a request needs. Override this method to let them depend on ``view.request.method``.

        Raises:
            ImproperlyConfigured: the view has no ``required_scopes``, or they are not a list of scopes.
        """
        names = getattr(view, "required_scopes", None)
        if not names:
            name = type(view).__name__
            raise ImproperlyConfigured(f"DeviceHasScope needs {name}.required_scopes, such as ['orders:read'].")
        try:
            return required(names)
        except InvalidInput as error:
            raise ImproperlyConfigured(f"{type(view).__name__}.required_scopes: {error}") from error


def HasDeviceScope(*names: str) -> type[DeviceHasScope]:
    """Return a class for ``permission_classes`` that allows devices that have all of these scopes.

    Args:
        names: scopes without ``*``: ``permission_classes = [HasDeviceScope("orders:read")]``.

    Raises:
        InvalidInput: one of them is not a scope.
    """
    if not names:
        raise InvalidInput("HasDeviceScope needs a scope.", hint='Write HasDeviceScope("orders:read").')
    scopes = required(names)

    class Granted(DeviceHasScope):
        def get_scopes(self, view: Any) -> tuple[str, ...]:
            return scopes

    Granted.__name__ = Granted.__qualname__ = f"HasDeviceScope({', '.join(map(repr, names))})"
    return Granted
