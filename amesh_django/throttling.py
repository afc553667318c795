"""REST framework: a rate for each device, counted over a moving window that all processes share."""

from __future__ import annotations

import functools
import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any

from django.core.cache import caches

try:
    from limits import RateLimitItemPerSecond
    from limits.storage import RedisStorage
    from limits.strategies import MovingWindowRateLimiter
    from rest_framework.exceptions import APIException
    from rest_framework.throttling import UserRateThrottle
except ModuleNotFoundError:
    raise ImportError(
        "amesh_django.drf needs the package limits, which is not installed. Run: pip install 'amesh-django[drf]'"
    ) from None

from authmesh.protocol.errors import InvalidInput

from .conf import nonce_cache
from .verification.eviction import redis_client
from .verification.request import RETRY_AFTER_SECONDS
from .verification.signed import signing_device

if TYPE_CHECKING:
    from rest_framework.request import Request

    from .verification import VerifiedDevice

logger = logging.getLogger("amesh_django.verification")

#: Maximum number of requests in a device's own rate.
MAX_REQUESTS = 100_000
#: The permission of a device with its own rate, such as ``100/min``.
RATE = "rate"
_RATE = re.compile(r"([0-9]{1,9})/(?:(s)(?:ec|econd)?|(m)(?:in|inute)?|(h)(?:our)?|(d)(?:ay)?)").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class RateLimitUnavailable(APIException):
    """The requests of a device cannot be counted: 503."""

    status_code = 503
    default_detail = "Requests cannot be counted. Try again later."
    default_code = "rate_limit_unavailable"
    wait = RETRY_AFTER_SECONDS  # REST framework's name for Retry-After


class DeviceRateThrottle(UserRateThrottle):
    """Counts by device, and by user or address for other requests: the rate is ``DEFAULT_THROTTLE_RATES["device"]``.

    A device may have a rate of its own, in its permission ``rate``: ``100/min``. Requests of devices are counted in the Redis of the
    nonces, so that all processes count together. If the nonces are not in Redis, REST framework counts them in the cache
    ``default``. Other requests are always counted there, because anyone may send them.
    """

    scope = "device"

    def allow_request(self, request: Request, view: Any) -> bool:
        """Return True if the rate allows the request.

        Raises:
            RateLimitUnavailable: Redis cannot be reached, or the device's own rate cannot be read and there is no other.
        """
        device = signing_device(request)
        if device is None:
            return bool(super().allow_request(request, view))
        self.num_requests, self.duration = self._rate_of(device)
        if self.num_requests is None:
            return True
        limiter = _limiter(nonce_cache())
        if self.num_requests == 0 or limiter is None:
            self.rate = self.rate or "own"  # REST framework counts nothing if there is no rate
            return bool(super().allow_request(request, view))
        item = RateLimitItemPerSecond(self.num_requests, self.duration)
        try:
            allowed = limiter.hit(item, self.scope, device.device_id)
            self._reset = 0.0 if allowed else limiter.get_window_stats(item, self.scope, device.device_id).reset_time
        except Exception as error:  # each client of Redis raises errors of its own
            logger.error("Requests cannot be counted in the cache %r: %s", nonce_cache(), type(error).__name__)
            raise RateLimitUnavailable() from error
        return allowed

    def wait(self) -> float | None:
        """Return the seconds until the next request is allowed, for ``Retry-After``; None if that is not known."""
        if hasattr(self, "_reset"):
            return max(1.0, math.ceil(self._reset - time.time()))
        return super().wait()

    def get_cache_key(self, request: Request, view: Any) -> str | None:
        device = signing_device(request)
        if device is None:
            return super().get_cache_key(request, view)
        return self.cache_format % {"scope": self.scope, "ident": device.device_id}

    def _rate_of(self, device: VerifiedDevice) -> tuple[Any, Any]:
        """Return the number of requests and the seconds in which they are allowed; two Nones without a rate.

        Raises:
            RateLimitUnavailable: the device has a rate that cannot be read, and there is no general one.
        """
        own, general = device.permissions.get(RATE), self.parse_rate(self.rate)
        if own is None:
            return general
        try:
            return parse_rate(own)
        except InvalidInput as error:
            does = "is rejected, because there is no general rate" if general[0] is None else "has the general rate"
            logger.error("The device %s %s: %s", device.device_id, does, error)
        if general[0] is None:
            raise RateLimitUnavailable()
        return general


def parse_rate(text: object) -> tuple[int, int]:
    """Return the number of requests and the seconds of a rate such as ``100/min``.

    Args:
        text: a number, ``/``, and ``s``, ``m``, ``h`` or ``d``, or the whole word.

    Raises:
        InvalidInput: the text is not a rate, or the number is greater than 100,000: each request in the window is stored.
    """
    found = _RATE(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidInput("Its own rate cannot be read.", hint="Write it as 100/min.")
    number = int(found[1])
    if number > MAX_REQUESTS:
        raise InvalidInput(
            f"Its own rate allows more than {MAX_REQUESTS} requests.", hint="Use a shorter time, such as 1000/s."
        )
    return number, _SECONDS[next(filter(None, found.groups()[1:]))]


def _limiter(alias: str) -> MovingWindowRateLimiter | None:
    """Return what counts in the Redis of a cache, or None if the cache is not in one Redis."""
    pool = getattr(redis_client(caches[alias]), "connection_pool", None)
    return _limiter_of(pool) if pool is not None else None


@functools.lru_cache(maxsize=64)
def _limiter_of(pool: Any) -> MovingWindowRateLimiter:
    return MovingWindowRateLimiter(RedisStorage("redis://", connection_pool=pool, key_prefix="amesh:rate"))
