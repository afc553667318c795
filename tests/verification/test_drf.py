"""The REST framework classes, in process. test_wire_* tests them on real servers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.views.decorators.cache import cache_page
from rest_framework.authentication import BasicAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, DeviceRateThrottle, HasDevicePermission, IsTrustedDevice
from amesh_django.test.devices import EphemeralDevice
from amesh_django.test.drf import AmeshAPIClient
from amesh_django.verification import VerifiedDevice, verified_device
from amesh_django.verification.users import DeviceUser


class OnePerDevice(DeviceRateThrottle):
    rate = "1/min"


class Who(APIView):
    authentication_classes = (AmeshAuthentication, BasicAuthentication)
    permission_classes: Any = (IsTrustedDevice | IsAuthenticated,)

    def get(self, request: Request) -> Response:
        device = request.auth if isinstance(request.auth, VerifiedDevice) else None
        return Response(
            {
                "user": str(request.user),
                "device": device.friendly_name if device else None,
                "same": device is getattr(request, "amesh", None),
                "row": not isinstance(request.user, DeviceUser),
            }
        )

    post = get


class Verified(Who):
    permission_classes = ()

    def get(self, request: Request) -> Response:
        assert verified_device(request) is verified_device(request._request)
        return Response({"device": verified_device(request).device_id})


def verified(request: HttpRequest) -> HttpResponse:
    return HttpResponse(verified_device(request).device_id)


class UserAuthentication(AmeshAuthentication):
    require_user = True


class OptionalAuthentication(AmeshAuthentication):
    require_user = False


urlpatterns = [
    path("who/", Who.as_view()),
    path("trusted/", Who.as_view(permission_classes=[IsTrustedDevice])),
    path("shell/", Who.as_view(permission_classes=[IsTrustedDevice & HasDevicePermission("shell")])),
    path("no-shell/", Who.as_view(permission_classes=[~HasDevicePermission("shell")])),
    path("required/", Who.as_view(authentication_classes=[UserAuthentication])),
    path("optional/", Who.as_view(authentication_classes=[OptionalAuthentication])),
    path("people/", Who.as_view(permission_classes=[IsAuthenticated])),
    path("verified/", Verified.as_view()),
    path("plain/", verified),
    path("plain-device/", device_required(verified)),
    path("anyone/", Who.as_view(permission_classes=[])),
    path("cached/", cache_page(60)(Who.as_view(permission_classes=[]))),
    path("throttled/", Who.as_view(throttle_classes=[OnePerDevice])),
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
Trust = Callable[..., EphemeralDevice]


def test_a_device_without_a_user(amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice) -> None:
    response = amesh_api_client.get("/who/?a=1&b=%C3%BC")
    assert response.status_code == 200
    assert response.json() == {
        "user": amesh_device.identity.device_id,
        "device": amesh_device.identity.friendly_name,
        "same": True,
        "row": False,
    }


def test_a_mapped_user(amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice) -> None:
    user = get_user_model().objects.create_user("bob")
    DatabaseAllowList().map_user(amesh_device.identity.device_id, user)
    assert amesh_api_client.get("/who/").json()["user"] == "bob"
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    response = amesh_api_client.get("/who/")
    assert (response.status_code, response.json()) == (401, {"error": "unauthorized"})
    assert response["WWW-Authenticate"] == "AuthMesh"


def test_a_request_without_our_header_is_left_to_the_next_class(amesh_server: Any) -> None:
    get_user_model().objects.create_user("carol", password="pw")
    client = APIClient()
    assert client.get("/who/").status_code == 401
    assert client.get("/who/")["WWW-Authenticate"] == "AuthMesh"
    client.credentials(HTTP_AUTHORIZATION="Basic Y2Fyb2w6cHc=")
    assert client.get("/who/").json()["user"] == "carol"
    assert client.get("/trusted/").status_code == 403


@pytest.mark.parametrize("value", ["AuthMesh x", "authmesh v=1", "AUTHMESH", "AuthMesh"])
def test_a_malformed_header_of_our_scheme_is_rejected(amesh_server: Any, value: str) -> None:
    response = APIClient().get("/who/", HTTP_AUTHORIZATION=value)
    assert (response.status_code, response.json()) == (400, {"error": "malformed_header"})


def test_an_unknown_device(amesh_server: Any) -> None:
    response = AmeshAPIClient(EphemeralDevice()).post("/who/", {"a": 1}, format="json")
    assert (response.status_code, response.json()) == (401, {"error": "unauthorized"})


def test_permissions(amesh_trust: Trust) -> None:
    plain, shell = amesh_trust(), amesh_trust(permissions={"shell": True})
    odd = amesh_trust(permissions={"shell": "yes"})
    expected = {"/trusted/": (200, 200, 200), "/shell/": (403, 200, 403), "/no-shell/": (200, 403, 200)}
    for url, statuses in expected.items():
        found = tuple(AmeshAPIClient(device).get(url).status_code for device in (plain, shell, odd))
        assert found == statuses, url


def test_the_verified_device_of_a_request(amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice) -> None:
    """A request that no device signed, or that nothing verified, has none: 403."""
    name = amesh_device.identity.device_id
    assert amesh_api_client.get("/verified/").json() == {"device": name}
    assert amesh_api_client.get("/plain-device/").content == name.encode()
    assert amesh_api_client.get("/plain/").status_code == 403
    response = APIClient().get("/verified/")
    assert (response.status_code, response.json()) == (403, {"detail": "A trusted device must sign this request."})


def test_throttles_count_by_device(amesh_trust: Trust) -> None:
    """Two devices of one user, at one address, count on their own, and so does a person."""
    bob = get_user_model().objects.create_user("bob")
    devices = [amesh_trust() for _ in range(2)]
    for device in devices:
        DatabaseAllowList().map_user(device.identity.device_id, bob)
    person = APIClient()
    person.force_authenticate(bob)
    clients = [*(AmeshAPIClient(device) for device in devices), person]
    assert [client.get("/throttled/").status_code for client in clients * 2] == [200, 200, 200, 429, 429, 429]


def test_behind_the_middleware_a_request_is_verified_once(amesh_trusted_device: EphemeralDevice) -> None:
    from django.conf import settings

    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware"]):
        response = AmeshAPIClient(amesh_trusted_device).get("/who/")
        assert response.status_code == 200, response.content
        assert response.json()["same"]


def test_responses_vary_by_the_authorization_header(amesh_api_client: AmeshAPIClient, amesh_server: Any) -> None:
    """So that a cache keeps the response to a device from others, and the response to others from a device."""
    for client, url, status in (
        (amesh_api_client, "/anyone/", 200),
        (APIClient(), "/anyone/", 200),
        (APIClient(), "/who/", 401),
        (AmeshAPIClient(EphemeralDevice()), "/who/", 401),
        (amesh_api_client, "/shell/", 403),
    ):
        response = client.get(url)
        assert response.status_code == status
        words = [word.strip() for word in response["Vary"].split(",")]
        assert words.count("Authorization") == 1, words
        assert "Accept" in words


@pytest.mark.parametrize("unsigned_first", [False, True])
def test_a_cached_page_is_not_served_to_others(
    amesh_trusted_device: EphemeralDevice, unsigned_first: bool, settings: Any
) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "vary"}}
    caches["default"].clear()
    clients = [AmeshAPIClient(amesh_trusted_device), APIClient()]
    found = [client.get("/cached/").json()["device"] for client in (clients[::-1] if unsigned_first else clients)]
    name = amesh_trusted_device.identity.friendly_name
    assert found == ([None, name] if unsigned_first else [name, None])


def test_device_and_user_can_be_kept_in_a_cache(
    amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice
) -> None:
    DatabaseAllowList().set_permissions(amesh_device.identity.device_id, {"shell": True, "scopes": ["orders:read"]})
    device = verified_device(amesh_api_client.get("/who/").wsgi_request)
    for found in (pickle.loads(pickle.dumps(device)), copy.deepcopy(device)):  # noqa: S301
        assert found == device and hash(found) == hash(device) and found.has_permission("shell")
    user = DeviceUser(device)
    assert pickle.loads(pickle.dumps(user)) == copy.copy(user) == user  # noqa: S301


def test_a_device_user_has_all_that_an_anonymous_user_has(amesh_trusted_device: EphemeralDevice) -> None:
    device = VerifiedDevice("am_x", "x", 0, "controller")
    user = DeviceUser(device)
    assert [name for name in dir(AnonymousUser()) if not hasattr(user, name)] == []
    assert list(user.groups.all()) == list(user.user_permissions.all()) == []
    assert user.get_group_permissions() == user.get_user_permissions() == set()
    assert async_to_sync(user.ahas_perm)("amesh.view_device") is False
    assert not user.check_password("")
    for change in (user.save, user.delete, lambda: user.set_password("x"), lambda: int(user)):  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="Map the device to a Django user"):
            change()


def test_views_that_require_a_user(
    amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice, settings: Any
) -> None:
    def status() -> list[int]:
        return [amesh_api_client.get(url).status_code for url in ("/required/", "/who/", "/optional/")]

    assert status() == [403, 200, 200]
    body = amesh_api_client.get("/required/").json()
    assert body["error"] == "user_required" and "is not mapped to one" in body["detail"]
    settings.AMESH = {**settings.AMESH, "REQUIRE_USER": True}
    assert status() == [403, 403, 200]
    DatabaseAllowList().map_user(amesh_device.identity.device_id, get_user_model().objects.create_user("bob"))
    assert status() == [200, 200, 200]


def test_views_for_people_reject_devices_by_default(
    amesh_api_client: AmeshAPIClient, amesh_device: EphemeralDevice, settings: Any
) -> None:
    """Only views that name devices accept them. A device that is mapped to a user is that user."""
    assert amesh_api_client.get("/people/").status_code == 403
    assert amesh_api_client.get("/trusted/").status_code == 200
    settings.AMESH = {**settings.AMESH, "DEVICES_ARE_USERS": True}
    assert amesh_api_client.get("/people/").status_code == 200
    settings.AMESH = {**settings.AMESH, "DEVICES_ARE_USERS": False}
    DatabaseAllowList().map_user(amesh_device.identity.device_id, get_user_model().objects.create_user("bob"))
    assert amesh_api_client.get("/people/").status_code == 200
