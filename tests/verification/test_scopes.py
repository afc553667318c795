"""Views that ask for scopes: REST framework, decorator, middleware; and the names that a project grants."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django import conf, grantable
from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, DeviceHasScope, HasDeviceScope
from amesh_django.middleware import required_scopes
from amesh_django.test.client import AmeshAsyncClient, AmeshClient
from amesh_django.test.devices import EphemeralDevice
from authmesh.protocol.errors import InvalidInput


class Orders(APIView):
    authentication_classes = (AmeshAuthentication,)
    permission_classes: Any = (DeviceHasScope,)
    required_scopes: Any = ("orders:read", "stock:read")

    def get(self, request: Request) -> Response:
        return Response(sorted(request.amesh.scopes))  # type: ignore[attr-defined]


class NoScopes(Orders):
    required_scopes = None


class Wildcard(Orders):
    required_scopes = ("orders:*",)


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


async def later(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


@method_decorator(device_required(scopes=["orders:read"]), name="dispatch")
class Classy(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("fine")


urlpatterns = [
    path("orders/", Orders.as_view()),
    path("one/", Orders.as_view(permission_classes=[HasDeviceScope("orders:read")])),
    path("either/", Orders.as_view(permission_classes=[HasDeviceScope("orders:write") | IsAdminUser])),
    path("none/", NoScopes.as_view()),
    path("wildcard/", Wildcard.as_view()),
    path("plain/", device_required(scopes=["orders:read"])(plain)),
    path("later/", device_required(scopes=["orders:read"])(later)),
    path("classy/", Classy.as_view()),
    path("shop/orders/", plain),
    path("shop/", plain),
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
Trust = Callable[..., EphemeralDevice]
PROTECTED: dict[str, Any] = {"PROTECT": ["/open/", ("/shop/", ["shop:use"]), ("/shop/orders/", ["orders:read"])]}


@pytest.mark.parametrize(
    ("scopes", "statuses"),
    [
        ([], (403, 403, 403, 403)),
        (["orders:read"], (403, 200, 200, 200)),
        (["orders:*"], (403, 200, 200, 200)),
        (["orders:*", "stock:read"], (200, 200, 200, 200)),
        ("orders:read", (403, 403, 403, 403)),
    ],
)
def test_only_devices_with_the_scope_are_accepted(amesh_trust: Trust, scopes: Any, statuses: tuple[int, ...]) -> None:
    client = AmeshClient(amesh_trust(permissions={"scopes": scopes}))
    found = tuple(client.get(url).status_code for url in ("/orders/", "/one/", "/plain/", "/classy/"))
    assert found == statuses
    later = AmeshAsyncClient(client.device)
    assert async_to_sync(later.get)("/later/").status_code == statuses[2]
    assert client.get("/either/").status_code in ((200,) if scopes and "orders:*" in scopes else (403,))


def test_a_view_sees_the_scopes(amesh_trust: Trust) -> None:
    device = amesh_trust(permissions={"scopes": ["stock:read", "orders:*"]})
    assert AmeshClient(device).get("/orders/").json() == ["orders:*", "stock:read"]


def test_the_refusal_says_why(amesh_trust: Trust, caplog: pytest.LogCaptureFixture) -> None:
    client = AmeshClient(amesh_trust())
    assert client.get("/plain/").json() == {"error": "insufficient_scope"}
    assert "insufficient_scope" in caplog.text
    assert "orders:read" in caplog.text
    detail = client.get("/one/").json()["detail"]
    assert detail == "This address requires a scope that this device does not have."


def test_a_mistake_of_the_project_is_not_a_refusal(amesh_trust: Trust) -> None:
    client = AmeshClient(amesh_trust())
    for url, text in (("/none/", "NoScopes.required_scopes"), ("/wildcard/", r"list of names .* \('orders:\*',\)")):
        with pytest.raises(ImproperlyConfigured, match=text):
            client.get(url)
    with pytest.raises(InvalidInput):
        HasDeviceScope("Orders")
    with pytest.raises(InvalidInput):
        HasDeviceScope()
    with pytest.raises(InvalidInput):
        device_required(scopes="orders:read")


@override_settings(AMESH=PROTECTED)
@pytest.mark.parametrize(
    ("url", "scopes"),
    [
        ("/open/x", ()),
        ("/shop/", ("shop:use",)),
        ("/shop", ("shop:use",)),
        ("/shop/orders/1", ("shop:use", "orders:read")),
        ("/open/../shop/", ("shop:use", "orders:read")),
        ("*", ("shop:use", "orders:read")),
    ],
)
def test_a_path_needs_the_scopes_of_all_entries_above_it(url: str, scopes: tuple[str, ...]) -> None:
    assert required_scopes(url) == scopes


def test_the_middleware_asks_for_scopes(amesh_trust: Trust, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "amesh_django.middleware.AmeshMiddleware"]
    settings.AMESH = {**settings.AMESH, **PROTECTED}
    shopper, clerk = (
        AmeshClient(amesh_trust(permissions={"scopes": scopes}))
        for scopes in (["shop:use"], ["shop:use", "orders:read"])
    )
    assert [shopper.get(url).status_code for url in ("/shop/", "/shop/orders/")] == [200, 403]
    assert [clerk.get(url).status_code for url in ("/shop/", "/shop/orders/")] == [200, 200]


@pytest.mark.parametrize(
    "amesh",
    [
        {"PROTECT": [("/shop/",)]},
        {"PROTECT": [("/shop/", "orders:read")]},
        {"PROTECT": [("/shop/", ["orders:*"])]},
        {"PROTECT": [("shop/", [])]},
        {"SCOPES": ["orders:read"]},
        {"SCOPES": {"Orders": "All of them."}},
        {"SCOPES": {"orders:read": {"permission": "shop.view_order"}}},
        {"SCOPES": {"orders:read": {"text": "Read.", "permission": "view_order"}}},
        {"PERMISSIONS": {"": "Nothing."}},
    ],
)
def test_wrong_settings(settings: Any, amesh: dict[str, Any]) -> None:
    settings.AMESH = amesh
    assert [kind for kind, _ in conf.problems()] == ["value"]


SCOPES = {
    "orders:read": {"text": "Read orders.", "permission": "shop.view_order"},
    "orders:write": {"text": "Change orders.", "permission": "shop.change_order"},
    "stock:read": "Read the stock.",
    "report:*": {"text": "Read reports.", "permission": "shop.report"},
}


@pytest.fixture
def names(settings: Any) -> None:
    settings.AMESH = {"SCOPES": SCOPES, "PERMISSIONS": {"print": "Print labels."}}


def test_names_that_the_project_does_not_grant(names: None) -> None:
    grantable.check_grantable("scope", ["orders:read", "orders:*", "report:*", "report:daily"])
    grantable.check_grantable("permission", ["print", "shell", "scopes"])
    with pytest.raises(InvalidInput, match=r"orders:raed is not in .*Did you mean orders:read\?"):
        grantable.check_grantable("scope", ["orders:read", "orders:raed"])
    with pytest.raises(InvalidInput, match=r"prnt is not in .*Did you mean print\?"):
        grantable.check_grantable("permission", ["prnt"])
    with pytest.raises(InvalidInput, match=r"xyz is not in .*Known: orders:read, "):
        grantable.check_grantable("scope", ["xyz"])
    with pytest.raises(InvalidInput, match="is not a scope"):
        grantable.check_grantable("scope", ["ORDERS"])


def test_without_settings_every_name_may_be_granted() -> None:
    grantable.check_grantable("scope", ["orders:raed"])
    grantable.check_grantable("permission", ["prnt"])
    with pytest.raises(InvalidInput, match="is not a scope"):
        grantable.check_grantable("scope", ["*"])


def test_what_a_person_needs_to_grant_a_name(names: None) -> None:
    needed = grantable.permissions_to_grant
    assert needed("scope", ["stock:read"]) == frozenset()
    assert needed("scope", ["orders:read"]) == {"shop.view_order"}
    assert needed("scope", ["orders:*"]) == {"shop.view_order", "shop.change_order"}
    assert needed("scope", ["report:daily"]) == {"shop.report"}


def test_the_log_line_of_a_refusal_has_the_device(amesh_trust: Trust, caplog: pytest.LogCaptureFixture) -> None:
    device = amesh_trust()
    with caplog.at_level(logging.WARNING, "amesh_django.verification"):
        AmeshClient(device).get("/plain/")
    record = next(record for record in caplog.records if getattr(record, "reason", "") == "insufficient_scope")
    assert record.device_id == device.identity.device_id  # type: ignore[attr-defined]
