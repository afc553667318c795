"""The rate of a device: in Redis, which all processes share, and in REST framework's own cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.cache import caches
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from amesh_django.drf import AmeshAuthentication, DeviceRateThrottle, IsTrustedDevice
from amesh_django.test.devices import EphemeralDevice
from amesh_django.test.drf import AmeshAPIClient
from amesh_django.throttling import RateLimitUnavailable, parse_rate
from amesh_django.verification import VerifiedDevice
from authmesh.protocol.errors import InvalidInput
from tests.support.services import Redis


class TwoPerDevice(DeviceRateThrottle):
    rate = "2/min"


class NoRate(DeviceRateThrottle):
    THROTTLE_RATES = {"device": None}  # noqa: RUF012


class Counted(APIView):
    authentication_classes = (AmeshAuthentication,)
    permission_classes = (IsTrustedDevice,)
    throttle_classes: Any = (TwoPerDevice,)

    def get(self, request: Request) -> Response:
        return Response({})


urlpatterns = [path("two/", Counted.as_view()), path("none/", Counted.as_view(throttle_classes=[NoRate]))]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
Trust = Callable[..., EphemeralDevice]
BACKENDS = ["django_redis.cache.RedisCache", "django.core.cache.backends.redis.RedisCache"]


@pytest.fixture(params=["memory", *BACKENDS])
def cache(request: pytest.FixtureRequest, settings: Any) -> Iterator[str]:
    """The cache of the nonces."""
    if request.param != "memory":
        redis: Redis = request.getfixturevalue("redis")
        settings.CACHES = {
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "amesh": {"BACKEND": request.param, "LOCATION": redis.url},
        }
    caches["default"].clear()
    yield request.param
    caches["default"].clear()


def statuses(device: EphemeralDevice, count: int, url: str = "/two/") -> list[int]:
    client = AmeshAPIClient(device)
    return [client.get(url).status_code for _ in range(count)]


def test_a_rate_for_each_device(cache: str, amesh_trust: Trust) -> None:
    one, two = amesh_trust(), amesh_trust()
    assert statuses(one, 3) == [200, 200, 429]
    assert statuses(two, 3) == [200, 200, 429]
    response = AmeshAPIClient(one).get("/two/")
    assert 55 <= int(response["Retry-After"]) <= 60


def test_a_device_with_a_rate_of_its_own(cache: str, amesh_trust: Trust) -> None:
    fast, blocked, odd = (amesh_trust(permissions={"rate": rate}) for rate in ("4/hour", "0/s", "many"))
    assert statuses(fast, 5) == [200, 200, 200, 200, 429]
    assert statuses(blocked, 1) == [429]
    assert statuses(odd, 3) == [200, 200, 429]
    assert statuses(amesh_trust(permissions={"rate": "1/m"}), 2, "/none/") == [200, 429]
    assert statuses(amesh_trust(), 4, "/none/") == [200] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_count_together(redis: Redis, settings: Any, backend: str) -> None:
    """Exactly the allowed number of requests is accepted, however many come at the same moment: Redis counts, not the process."""
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "amesh": {"BACKEND": backend, "LOCATION": redis.url},
    }
    device = VerifiedDevice("am_1", "x", 0, "controller", permissions={"rate": "20/min"})

    def ask(_number: int) -> bool:
        request = Request(APIRequestFactory().get("/"))
        request.auth = device
        return TwoPerDevice().allow_request(request, None)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(60))) == 20
    with redis.down(), pytest.raises(RateLimitUnavailable):
        ask(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/s", (1, 1)),
        ("100/min", (100, 60)),
        ("5/hour", (5, 3600)),
        ("0/day", (0, 86400)),
        ("100000/min", (100_000, 60)),
    ],
)
def test_rates(text: Any, expected: Any) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "cannot be read") for text in ("1/month", "-1/s", "1", "1/s\n", "\u0661/s", 5)),
        ("100001/min", "more than 100000 requests"),
        ("999999999/s", "more than 100000 requests"),
    ],
)
def test_a_rate_that_cannot_be_used_is_not_no_limit(
    amesh_trust: Trust, text: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_rate(text)
    device = amesh_trust(permissions={"rate": text})
    assert statuses(device, 1, "/none/") == [503] and f"{device.identity.device_id} is rejected" in caplog.text
    assert statuses(device, 3) == [200, 200, 429] and message in caplog.text  # the general rate
