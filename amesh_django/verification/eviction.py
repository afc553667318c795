"""Does the Redis behind a cache delete entries when its memory is full, or forget them when it ends? Both allow a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.redis import RedisCache

_OPTION = "maxmemory-policy"
_SAFE = "noeviction"


@dataclass(frozen=True, slots=True)
class Eviction:
    """What is wrong with a cache as a nonce store.

    Attributes:
        policy: the ``maxmemory-policy`` of Redis; None if it cannot be read.
        message: what is wrong.
        hint: what to do.
    """

    policy: str | None
    message: str
    hint: str


def eviction(alias: str, cache: BaseCache) -> Eviction | None:
    """Return what is wrong with the Redis behind a cache, or None.

    Args:
        alias: name of the cache in ``CACHES``, for the message.
        cache: a cache of Django's own Redis backend or of django-redis. None is returned for any other cache.

    Raises:
        Exception: Redis cannot be reached. Each client raises errors of its own.
    """
    client = redis_client(cache)
    if client is None:
        return None
    policy = _option(client, _OPTION, "memory", "maxmemory_policy")
    if policy == _SAFE:
        return None
    if policy is None:
        return Eviction(
            None,
            f"Redis does not tell whether the nonce store {alias!r} deletes live nonces: CONFIG and INFO are forbidden.",
            f"Check that its {_OPTION} is {_SAFE}, and grant its user the command CONFIG|GET or INFO.",
        )
    return Eviction(
        policy,
        f"The Redis of the nonce store {alias!r} deletes entries when its memory is full ({_OPTION} is {policy}), even live nonces: "
        "a request could be replayed.",
        f"Set {_OPTION} to {_SAFE}, or use a Redis of its own for nonces.",
    )


def forgets(cache: BaseCache) -> bool:
    """Return True if the Redis behind a cache does not write each change to its append-only file.

    False is returned for any other cache, and if Redis does not tell, which :func:`eviction` reports.

    Raises:
        Exception: Redis cannot be reached. Each client raises errors of its own.
    """
    client = redis_client(cache)
    return client is not None and _option(client, "appendonly", "persistence", "aof_enabled") in ("no", "0")


def forgetting(alias: str) -> tuple[str, str]:
    """Return message and hint about a Redis that forgets."""
    return (
        f"The Redis of the nonce store {alias!r} does not write nonces to a file (appendonly is no): if it ends and is started again, it "
        "has forgotten live nonces, and a request could be replayed.",
        "Set appendonly to yes in the configuration of this Redis.",
    )


def redis_client(cache: BaseCache) -> Any:
    """Return the redis-py client of a cache, or None if the cache is not in Redis."""
    if isinstance(cache, RedisCache):
        return cache._cache.get_client(None, write=True)
    get_client = getattr(getattr(cache, "client", None), "get_client", None)  # django-redis
    return get_client(write=True) if callable(get_client) else None


def _option(client: Any, name: str, section: str, member: str) -> str | None:
    """Return an option of Redis from CONFIG, or from a section of INFO; None if both are forbidden."""
    try:
        return _text(client.config_get(name)[name])
    except Exception as error:
        if not _is_refusal(error):
            raise
    try:  # INFO is often allowed if CONFIG is forbidden, as by providers of a managed Redis
        return _text(client.info(section)[member])
    except Exception as error:
        if not _is_refusal(error):
            raise
    return None


def _is_refusal(error: Exception) -> bool:
    """Return True if Redis answered that it does not run the command, or did not answer with the value."""
    return isinstance(error, LookupError) or any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
