"""The settings of the relay: one dict, ``AMESH["RELAY"]``; each key with a default, a type and a meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from amesh_django.conf import amesh_settings, key_problems, type_problem

REDIS_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """The keys of ``AMESH["RELAY"]``. A limit holds for all processes of a relay together, unless its text says "per process".

    Attributes:
        REDIS_URL: address of the Redis through which several processes are one relay. Defaults to the environment variable
            ``REDIS_URL``. If this is "" (or None, and the variable is not set), the process is a relay of its own and keeps
            everything in memory.
        REDIS_PREFIX: prefix of all keys and channels in Redis. Two relays that share a Redis need different prefixes.
        TRUSTED_PROXIES: number of proxies in front of the relay that add to X-Forwarded-For; 0 uses the address of the
            socket. Defaults to the environment variable ``AMESH_TRUST_PROXY``: 1, true or yes is one proxy, a number is that
            many, anything else is none.
        ALLOWED_ORIGINS: web pages that may connect, such as ``https://example.com``, or ``*``. Programs send no Origin and
            may always connect.
        MAX_MESSAGE_BYTES: maximum size of a message; a larger one closes the connection with code 1009.
        MAX_SESSION_BYTES: maximum number of bytes that the two sides of a pairing may send together.
        MATCH_SECONDS: lifetime of a one-time code that no controller connects with.
        FINISH_SECONDS: time that the two sides of a pairing have after they were matched, and that a target waits for the
            answer to its bootstrap token.
        TRIES_PER_MINUTE: maximum number of ``listen`` and ``connect`` messages per address and minute.
        ADDRESSES_PER_NETWORK: number of addresses that an IPv6 /48 counts as. All its addresses together may do so many times what
            TRIES_PER_MINUTE, WATCHES_PER_MINUTE, TOKENS_PER_MINUTE and CONNECTIONS_PER_ADDRESS allow to one of them.
        TRIES_PER_CODE: number of failed tries after which a one-time code is burnt.
        BURNT_SECONDS: time for which the failed tries on a code are remembered, and a burnt code is rejected, counted from
            the last try.
        WATCHES_PER_MINUTE: maximum number of ``bootstrap_watch`` messages per address and minute.
        TOKENS_PER_MINUTE: maximum number of ``bootstrap_init`` messages per address and minute.
        WATCH_SECONDS: lifetime of a watch that is not renewed.
        WATCHES_PER_CONNECTION: maximum number of tokens that one connection watches for at a time.
        USED_TOKEN_SECONDS: time for which a used bootstrap token is remembered.
        MAX_USED_TOKENS: maximum number of used tokens in that time. When it is reached, the relay accepts no further token,
            because a token that is forgotten could be used twice.
        USED_TOKENS_PER_NETWORK: maximum number of used tokens of one network, an IPv4 address or an IPv6 /48. For one more, the
            oldest of that network is forgotten, so that no network can make the relay reject the tokens of others. Controllers
            reject a token that is used twice by themselves.
        MAX_SESSIONS: maximum number of pairings at a time, and of watches at a time.
        SESSIONS_PER_NETWORK: the same for one network, an IPv4 address or an IPv6 /48. What exists is not ended for one more,
            because it may be in use.
        MAX_CONNECTIONS: maximum number of connections at a time; one more is closed with code 1013.
        CONNECTIONS_PER_ADDRESS: maximum number of connections of one address at a time, per process; 0 sets no limit.
        IDLE_SECONDS: time after which a connection without session, watch or token is closed.
        MAX_ERRORS: number of rejected messages of a connection in a minute, after which the connection is closed.
        UNSENT_SECONDS: time after which a connection that reads nothing of its waiting messages is closed.
        MAX_UNSENT_BYTES: maximum number of bytes that a process keeps for a connection that reads too slowly, before the
            process closes it. One message is always kept.
        MAX_UNSENT_BYTES_IN_ALL: the same for all connections of a process together.
    """

    REDIS_URL: str | None = None
    REDIS_PREFIX: str = "amesh-relay"
    TRUSTED_PROXIES: int | None = None
    ALLOWED_ORIGINS: Sequence[str] = ()
    MAX_MESSAGE_BYTES: int = 64 * 1024
    MAX_SESSION_BYTES: int = 5 * 1024 * 1024
    MATCH_SECONDS: int = 60
    FINISH_SECONDS: int = 180
    TRIES_PER_MINUTE: int = 5
    ADDRESSES_PER_NETWORK: int = 8
    TRIES_PER_CODE: int = 5
    BURNT_SECONDS: int = 600
    WATCHES_PER_MINUTE: int = 10
    TOKENS_PER_MINUTE: int = 60
    WATCH_SECONDS: int = 300
    WATCHES_PER_CONNECTION: int = 100
    USED_TOKEN_SECONDS: int = 25 * 3600
    MAX_USED_TOKENS: int = 200_000
    USED_TOKENS_PER_NETWORK: int = 2_000
    MAX_SESSIONS: int = 50_000
    SESSIONS_PER_NETWORK: int = 500
    MAX_CONNECTIONS: int = 10_000
    CONNECTIONS_PER_ADDRESS: int = 200
    IDLE_SECONDS: int = 90
    MAX_ERRORS: int = 50
    UNSENT_SECONDS: int = 10
    MAX_UNSENT_BYTES: int = 1024 * 1024
    MAX_UNSENT_BYTES_IN_ALL: int = 64 * 1024 * 1024


#: Minimum values of the integer settings whose minimum is not 1.
_MINIMUM = {
    "TRUSTED_PROXIES": 0,
    "CONNECTIONS_PER_ADDRESS": 0,
    "MAX_MESSAGE_BYTES": 1024,
    "MAX_UNSENT_BYTES": 1024,
    "MAX_UNSENT_BYTES_IN_ALL": 1024,
}


def problems() -> list[tuple[str, str]]:
    """Return the problems of ``AMESH["RELAY"]``: pairs of a kind (``unknown``, ``value``) and a sentence with the fix."""
    raw = getattr(django_settings, "AMESH", {})
    return _relay_problems(raw.get("RELAY")) if isinstance(raw, Mapping) else []


def relay_settings() -> RelaySettings:
    """Return the relay settings in force.

    Raises:
        ImproperlyConfigured: the settings have :func:`problems`, or those of the app have.
    """
    raw = amesh_settings().RELAY
    found = _relay_problems(raw)
    if found:
        raise ImproperlyConfigured(" ".join(sentence for _, sentence in found))
    return RelaySettings(**(raw or {}))


def redis_url(relay: RelaySettings) -> str:
    """Return the address of the Redis that the processes of the relay share, or "" if the relay is one process."""
    return os.environ.get("REDIS_URL", "") if relay.REDIS_URL is None else relay.REDIS_URL


def trusted_proxies(relay: RelaySettings) -> int:
    """Return how many proxies in front of the relay are trusted."""
    if relay.TRUSTED_PROXIES is not None:
        return relay.TRUSTED_PROXIES
    value = os.environ.get("AMESH_TRUST_PROXY", "").strip().lower()
    if value in ("true", "yes"):
        return 1
    return int(value) if value.isascii() and value.isdigit() and len(value) < 3 else 0


def _relay_problems(raw: Any) -> list[tuple[str, str]]:
    if raw is None:
        return []
    if not isinstance(raw, Mapping):
        return [("value", f"AMESH['RELAY'] must be a dict; it is {raw!r}.")]
    found = key_problems(RelaySettings, raw, "AMESH['RELAY']", _value_problem)
    return found or [("value", sentence) for sentence in _unfit(RelaySettings(**raw))]


def _value_problem(name: str, value: Any) -> str | None:
    if name != "ALLOWED_ORIGINS" or value is None:
        return type_problem(RelaySettings, name, value, _MINIMUM.get(name, 1))
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(origin, str) and (origin == "*" or "://" in origin) for origin in value):
            return None
    return "must be a list of origins such as https://example.com"


def _unfit(relay: RelaySettings) -> list[str]:
    """Return the problems of values that have the right type."""
    found = []
    # Not the environment variable REDIS_URL: other software may use it, and a project without a relay must not fail because of it.
    if relay.REDIS_URL and urlsplit(str(relay.REDIS_URL)).scheme not in REDIS_SCHEMES:
        found.append("AMESH['RELAY']['REDIS_URL'] must begin with redis://, rediss:// or unix://.")
    if not relay.REDIS_PREFIX:
        found.append("AMESH['RELAY']['REDIS_PREFIX'] must not be empty.")
    return found
