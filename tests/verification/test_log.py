"""What the log says about requests: one line for each, with stable members for JSON formatters."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from pythonjsonlogger.json import JsonFormatter

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decorators import device_required
from amesh_django.log import DeviceFilter
from amesh_django.signals import request_accepted, request_refused
from amesh_django.test import AmeshAsyncClient, AmeshClient, EphemeralDevice

logger = logging.getLogger("project")


@device_required
def view(request: HttpRequest) -> HttpResponse:
    logger.warning("in the view")
    return HttpResponse(request.META["amesh.device_id"])


@device_required
async def async_view(request: HttpRequest) -> HttpResponse:
    logger.warning("in the view")
    return HttpResponse(request.META["amesh.device_id"])


def open_view(request: HttpRequest) -> HttpResponse:
    logger.warning("in the open view")
    return HttpResponse()


urlpatterns = [path("sync", view), path("async", async_view), path("open", open_view)]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A function that returns what a JSON formatter wrote, with the filter on its handler."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(DeviceFilter())
    handler.setFormatter(JsonFormatter())
    loggers = (logger, logging.getLogger("amesh_django"))
    for each in loggers:
        each.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for each in loggers:
        each.removeHandler(handler)


def by_project(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "in-memory" not in line["message"]]


def test_one_line_for_each_refusal(amesh_trust: Callable[..., EphemeralDevice], lines: Any) -> None:
    device = amesh_trust()
    stranger = EphemeralDevice("nobody knows it")
    DatabaseAllowList().revoke(device.identity.device_id)
    assert AmeshClient(device).get("/sync?token=secret").status_code == 401
    assert AmeshClient(stranger).post("/sync").status_code == 401
    assert Client().get("/sync").status_code == 400
    common = {"event": "request_refused", "path": "/sync", "address": "127.0.0.1"}
    names = ("event", "code", "reason", "device_id", "device_name", "method", "path", "address")
    found = [{name: line[name] for name in names} for line in lines()]
    assert found == [
        {
            **common,
            "code": "unauthorized",
            "reason": "device_revoked",
            "device_id": device.identity.device_id,
            "device_name": device.identity.friendly_name,
            "method": "GET",
        },
        {
            **common,
            "code": "unauthorized",
            "reason": "unknown_device",
            "device_id": stranger.identity.device_id,
            "device_name": None,
            "method": "POST",
        },
        {
            **common,
            "code": "missing_header",
            "reason": "missing_header",
            "device_id": None,
            "device_name": None,
            "method": "GET",
        },
    ]
    assert "secret" not in str(lines())


def test_a_path_is_one_line(amesh_server: Any, db: None, lines: Any) -> None:
    with override_settings(MIDDLEWARE=["amesh_django.middleware.AmeshMiddleware"]):
        Client().get("/x%0a%1b[31m%e2%80%a8y")
    (line,) = lines()
    assert line["path"] == "/x\\n\\x1b[31m\\u2028y"


def test_a_name_cannot_forge_a_line(amesh_trust: Callable[..., EphemeralDevice], lines: Any) -> None:
    """A device chose its name itself, and a formatter for people writes the members as they are."""
    device = amesh_trust(EphemeralDevice("laptop\n\x1b[2KCRITICAL all\u2028good"))
    AmeshClient(device).get("/sync")
    DatabaseAllowList().revoke(device.identity.device_id)
    AmeshClient(device).get("/sync")
    shown = "laptop CRITICAL all good"
    assert [line["device_name"] for line in by_project(lines())] == [shown, shown]


@pytest.mark.parametrize("address", ["/sync", "/async"])
def test_the_device_is_on_every_record_of_its_request(amesh_client: AmeshClient, lines: Any, address: str) -> None:
    identity = amesh_client.device.identity
    answer = amesh_client.get(address)
    assert answer.content.decode() == identity.device_id
    Client().get("/open")
    logger.warning("between requests")
    assert [(line["message"], line["device_id"], line["device_name"]) for line in by_project(lines())] == [
        ("in the view", identity.device_id, identity.friendly_name),
        ("in the open view", "-", "-"),
        ("between requests", "-", "-"),
    ]


def test_the_device_is_on_every_record_under_asgi(amesh_async_client: AmeshAsyncClient, lines: Any) -> None:
    async_to_sync(amesh_async_client.get)("/async")
    assert [line["device_id"] for line in by_project(lines())] == [amesh_async_client.device.identity.device_id]


def test_signals(amesh_client: AmeshClient) -> None:
    seen: list[Any] = []

    def on_accepted(request: HttpRequest, device: Any, seconds: float, **kwargs: Any) -> None:
        seen.append((request.path, device.device_id, 0 < seconds < 60))

    def on_refused(request: HttpRequest, error: Any, **kwargs: Any) -> None:
        seen.append((request.path, error.reason))
        raise RuntimeError("a receiver that fails")

    request_accepted.connect(on_accepted)
    request_refused.connect(on_refused)
    try:
        assert amesh_client.get("/sync").status_code == 200
        assert Client().get("/sync").status_code == 400
    finally:
        request_accepted.disconnect(on_accepted)
        request_refused.disconnect(on_refused)
    assert seen == [("/sync", amesh_client.device.identity.device_id, True), ("/sync", "missing_header")]
